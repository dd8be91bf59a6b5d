"""Explains what the machine does to a job: a disk that is full, a data loader worker that is killed."""

import contextlib
import errno
import re
from collections.abc import Iterator

from retina_plugin.core.errors import MachineError, UserError

_FULL, _REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_ADVICE = {
    **dict.fromkeys(_FULL, "Free space, or choose another folder"),
    **dict.fromkeys(_REFUSED, "Correct the disk or the permissions, or choose another folder"),
}
# What usually ends a worker, by the words of torch's error.
_ENDS = {
    "Bus error": "Its shared memory ran out: enlarge /dev/shm (docker: --shm-size), or set DATALOADER.NUM_WORKERS 0",
    "Segmentation fault": "Set DATALOADER.NUM_WORKERS 0 (of a command: --workers 0) to see what it reads",
    "exit code": "Set DATALOADER.NUM_WORKERS 0 (of a command: --workers 0) to see its error",
    "": "Memory has probably run out: lower DATALOADER.NUM_WORKERS (of a command: --workers)",
}


@contextlib.contextmanager
def explain_failures(what_next: str = "") -> Iterator[None]:
    """Raise failures of the machine as errors for the user.

    Args:
        what_next: a sentence for their end.

    Raises:
        MachineError: a disk, a quota or a size limit is exhausted, a file cannot be used, or a data loader worker died.
        UserError: raised in a data loader worker, whose traceback torch adds to the message.
    """
    try:
        yield
    except Exception as error:
        explained = explain_failure(error)
        if explained is None or explained is error:
            raise
        if what_next and isinstance(explained, MachineError):
            explained = MachineError(f"{explained}. {what_next}")
        raise explained from error


def explain_failure(error: BaseException) -> UserError | None:
    """Return the error for the user that is behind an exception; None if there is none."""
    chain = list(_chain(error))
    for seen in chain:
        if isinstance(seen, UserError):
            return _without_traceback(seen)
        if isinstance(seen, RuntimeError) and str(seen).startswith("DataLoader worker (pid"):
            return _dead_worker(str(seen))
    refused = [seen for seen in chain if isinstance(seen, OSError) and seen.errno in _ADVICE]
    if not refused:
        return None
    named = next((seen for seen in refused if seen.filename), refused[0])  # closing a file fails again, without a name
    what = "cannot be written" if named.errno in _FULL else "cannot be used"
    return MachineError(f"{named.filename or 'a file'} {what}: {named.strerror}. {_ADVICE[named.errno or 0]}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


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
    return MachineError(f"a data loader worker died: {how}. {advice}")
