"""Explains what the machine does to a job: a disk that is full, a data loader worker that is killed."""

import contextlib
import errno
import re
from collections.abc import Iterator

from retina_plugin.core.errors import MachineError, UserError

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_FREE_SPACE = (
    "Free space, or choose another folder. Files that were complete before stay as they are; a training goes on from "
    "its last checkpoint with --resume"
)
# What usually ends a worker, by the words of torch's error.
_ENDS = {
    "Bus error": "Its shared memory ran out: enlarge /dev/shm (docker: --shm-size), or set DATALOADER.NUM_WORKERS 0",
    "Segmentation fault": "Set DATALOADER.NUM_WORKERS 0 (of a command: --workers 0) to see what it reads",
    "exit code": "Set DATALOADER.NUM_WORKERS 0 (of a command: --workers 0) to see its error",
    "": "Memory has probably run out: lower DATALOADER.NUM_WORKERS (of a command: --workers)",
}


@contextlib.contextmanager
def explain_failures() -> Iterator[None]:
    """Raise failures of the machine as errors for the user.

    Raises:
        MachineError: a file could not be written since its disk, its quota or its size limit is exhausted, or a data
            loader worker died.
        UserError: raised in a data loader worker, whose traceback torch adds to the message.
    """
    try:
        yield
    except Exception as error:
        explained = explain_failure(error)
        if explained is None or explained is error:
            raise
        raise explained from error


def explain_failure(error: BaseException) -> UserError | None:
    """Return the error for the user that is behind an exception; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return _without_traceback(seen)
        if isinstance(seen, RuntimeError) and str(seen).startswith("DataLoader worker (pid"):
            return _dead_worker(str(seen))
        if isinstance(seen, OSError) and seen.errno in _CANNOT_WRITE:
            return MachineError(f"{seen.filename or 'a file'} cannot be written: {seen.strerror}. {_FREE_SPACE}")
        seen = seen.__cause__ or seen.__context__
    return None


def _without_traceback(error: UserError) -> UserError:
    """Undo what torch makes of an error that a data loader worker raised."""
    text = str(error)
    if not text.startswith("Caught ") or "in DataLoader worker process" not in text.partition("\n")[0]:
        return error
    *_, message = re.split(rf"^[\w.]*\b{type(error).__name__}: ", text, flags=re.MULTILINE)
    return type(error)(message.strip())


def _dead_worker(text: str) -> MachineError:
    how = text.removeprefix("DataLoader worker ").partition("Details are lost")[0]
    how = " ".join(re.sub(r"^\((pid\S*) (.*?)\) ", r"\1 \2 ", how).split()).rstrip(".")
    advice = next(advice for end, advice in _ENDS.items() if end in how)
    return MachineError(
        f"a data loader worker died: {how}. {advice}. A training goes on from its last checkpoint with --resume"
    )
