"""Files that are written whole or not at all, and what a file is by its first bytes."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from typing import IO, Any

from retina_plugin.core.errors import FileError

UNFINISHED_SUFFIX = ".unfinished"

_OTHER_KINDS = {
    b"version https://git-lfs": "a git-lfs pointer: run `git lfs pull` where it came from",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ\x00": "an xz archive: unpack it",
}
_SPECIAL_FILES = {
    stat.S_ISDIR: "folder",
    stat.S_ISFIFO: "named pipe",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
}
_MARKUP = re.compile(rb"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


def require_regular_file(path: str | os.PathLike) -> None:
    """Check that a local path, after its links, names a regular file: reading anything else may block or never end.

    Raises:
        FileError: it is a folder, a named pipe, a socket or a device, or a link that leads nowhere or in a circle.
        OSError: there is no such path, or a folder above it cannot be searched.
    """
    path = os.fspath(path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileError(f"{path} is a link in a circle, not a file") from error
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            raise FileError(f"{path} is a link to {os.path.realpath(path)}, which does not exist") from error
        raise
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _SPECIAL_FILES.items() if is_kind(mode)), "special file")
        raise FileError(f"{path} is a {kind}, not a file")


def refuse_special_file(path: str | os.PathLike) -> None:
    """Check that reading a path does not block or never end. Missing files, folders and remote paths pass.

    Raises:
        FileError: it is a named pipe, a socket or a device.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        require_regular_file(path)


def require_new_file(
    path: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[str | os.PathLike | None] = ()
) -> None:
    """Check, before any work, that a file whose name the user chose can be written without a loss.

    Args:
        path: the file to write.
        overwrite: whether it may replace another file.
        inputs: files that are read, which it never replaces; compared through links and all spellings.

    Raises:
        FileError: it exists, is one of the inputs or no regular file, or its folder is missing.
    """
    path = os.fspath(path)
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise FileError(f"{path} cannot be written: there is no folder {os.path.dirname(path)}")
    if not os.path.lexists(path):
        return
    for other in inputs:
        if other and os.path.exists(other) and os.path.exists(path) and os.path.samefile(path, other):
            raise FileError(f"{path} is the input {other} itself, which stays as it is: name another file")
    if os.path.exists(path):
        require_regular_file(path)
    if not overwrite:
        raise FileError(f"{path} exists: name another file, or replace it with --overwrite")


def atomic_write(
    path: str | os.PathLike,
    write: Callable[[IO[bytes]], object],
    *,
    path_manager: Any | None = None,
    survives_power_cut: bool = True,
) -> None:
    """Write a file in one step: a reader, also after a crash, sees the old file or all of the new one.

    A process that is killed leaves the file with the suffix ``.unfinished``, which nothing reads. A remote path
    ("scheme://...") is written by a ``PathManager`` instead, which has no atomic rename.

    Args:
        path: the file.
        write: called with the open binary file.
        path_manager: opens a remote path; None for Detectron2's.
        survives_power_cut: wait until the disk has the file, which takes longer than writing a small one.

    Raises:
        OSError: the file cannot be written.
    """
    path = os.fspath(path)
    if "://" in path:
        from detectron2.utils.file_io import PathManager  # local files need no Detectron2

        with (path_manager or PathManager).open(path, "wb") as remote:
            write(remote)
        return
    unfinished = path + UNFINISHED_SUFFIX
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            if survives_power_cut:  # before the rename: a power cut could otherwise leave the name without the data
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        cause: BaseException | None = error
        while cause is not None:  # torch.save() raises another error over that of the write
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = path  # a failed write does not know its file
            cause = cause.__context__
        raise
    if survives_power_cut:
        _sync_folder(os.path.dirname(path) or ".")


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """:func:`atomic_write` for text in UTF-8; halves of surrogate pairs, which UTF-8 lacks, are escaped."""
    atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def remove_unfinished(folder: str | os.PathLike, *names: str) -> None:
    """Remove what killed processes have left of files in a folder. Call only as the folder's single writer.

    Args:
        folder: the folder; it may be missing.
        names: ends of the names of the files that were being written.
    """
    ends = tuple(name + UNFINISHED_SUFFIX for name in names)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.endswith(ends):
                os.remove(os.path.join(folder, name))


def identify_file(head: bytes) -> str | None:
    """What a file is whose first bytes are no data of ours.

    Args:
        head: its first bytes; 64 are enough.

    Returns:
        A noun phrase and, where there is a remedy, a colon and the remedy; None for all other files.
    """
    if not head:
        return "an empty file (0 bytes)"
    if not head.strip(b"\0"):
        return "a file that begins with zeros: get it again, it was not written to its end"
    for beginning, kind in _OTHER_KINDS.items():
        if head.startswith(beginning):
            return kind
    return "a web page or XML" if _MARKUP.match(head) else None


def _sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # not every system opens folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
