"""Locks an output folder, so that one run at a time writes into it."""

import contextlib
import errno
import fcntl
import logging
import os
import socket

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import require_regular_file

LOCK_FILE = "run.lock"


def lock_output_dir(folder: str) -> contextlib.ExitStack:
    """Lock a folder, which is made if it is missing, for this process.

    The system releases the lock when the process ends, however it ends; the file itself stays and means nothing. Data
    loader workers and other forked processes do not share the lock. A remote folder is not locked. On a file system
    without locks, a warning is logged.

    Returns:
        A context manager that releases the lock. Without it, the lock is held until the process ends.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.
    """
    held = contextlib.ExitStack()
    if not folder or "://" in folder:
        return held
    path = os.path.join(folder, LOCK_FILE)
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.lexists(path):
            require_regular_file(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError([f"OUTPUT_DIR {folder} cannot be written: {error.strerror or error}"]) from None
    try:
        # A POSIX lock: in contrast to those of flock(), a child process that outlives its parent does not hold it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            message = "%s cannot be locked (%s): see to it that no other run writes into this folder."
            logging.getLogger(__name__).warning(message, folder, error.strerror)
            return held
        raise ConfigError([
            f"OUTPUT_DIR {folder} belongs to a run that is still running ({owner or 'it has just started'}). Wait for "
            "its end, stop it, or choose another OUTPUT_DIR"
        ]) from None  # fmt: skip
    held.callback(os.close, descriptor)
    with contextlib.suppress(OSError):  # the text is for the message above alone
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return held
