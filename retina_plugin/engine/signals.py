"""Stops training with a checkpoint on Ctrl-C or SIGTERM.

The first signal sets a flag. At the next safe point all ranks learn of the flag, on whichever rank it is set, and stop
together. Safe points are the end of an iteration, after all hooks, and, during an evaluation, every few images. A
second signal has its usual effect.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from detectron2.utils import comm
from torch.utils.data import DataLoader

from retina_plugin.core.comm import any_rank
from retina_plugin.data.workers import ignore_signals

# EX_TEMPFAIL of sysexits.h: try again later, here with --resume.
EXIT_INTERRUPTED = 75
IMAGES_BETWEEN_CHECKS = 8


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after a checkpoint was saved. Notebooks and scripts treat it as Ctrl-C."""


class EvaluationInterrupted(Exception):
    """An evaluation was left because of a signal, on all ranks at the same image."""


class _SignalState:
    """The signal that this process received, and the handlers that were replaced."""

    signal_name: str | None = None
    pid: int | None = None
    what_happens = ""
    previous_handlers: dict[int, Any] = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a data loader worker, just forked
            return
        self.signal_name = signal.Signals(number).name
        self.restore_handlers()  # for the second signal
        if comm.is_main_process():
            text = f"{self.signal_name}: {self.what_happens}; again to end at once\n"
            os.write(2, text.encode())  # not through logging: the signal may interrupt a write to the log

    def restore_handlers(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)


_state = _SignalState()  # signal handlers belong to the process


@contextlib.contextmanager
def catch_signals(what_happens: str = "stopping with a checkpoint after this iteration") -> Iterator[None]:
    """Catch SIGINT and SIGTERM; the previous handlers are restored at the end.

    Only in the main thread, where Python handles signals. Handlers other than the defaults of Python and of the system
    stay in place: another part of the program needs the signal.

    Args:
        what_happens: printed at the first signal.
    """
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    _state.signal_name, _state.pid, _state.previous_handlers = None, os.getpid(), {}
    _state.what_happens = what_happens
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        _state.previous_handlers = {number: handler for number, handler in previous.items() if handler in defaults}
    for number in _state.previous_handlers:
        signal.signal(number, _state.receive)
    try:
        yield
    finally:
        _state.restore_handlers()
        _state.pid = None


def signal_received() -> str | None:
    """Return the name of the signal that this process received during :func:`catch_signals`, or None."""
    return _state.signal_name


class InterruptibleLoader:
    """Wraps a test loader so that a signal ends an evaluation during training.

    Raises:
        EvaluationInterrupted: a rank received a signal; raised by ``next()``, every few images.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        if isinstance(loader, DataLoader) and loader.worker_init_fn is None:
            loader.worker_init_fn = ignore_signals

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        # The ranks' numbers of images differ by at most one: every rank takes part in the same checks.
        last = min(comm.all_gather(len(self._loader))) if _state.pid else 0
        for i, batch in enumerate(self._loader):
            if i < last and i % IMAGES_BETWEEN_CHECKS == 0 and any_rank(signal_received()):
                raise EvaluationInterrupted
            yield batch
