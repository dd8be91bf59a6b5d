"""Ctrl-C and SIGTERM (a machine that is taken away) end a training with a checkpoint.

The first signal only sets a flag. At the next safe point all processes learn of it, whichever of them got it, and stop
together. Safe points are the end of an iteration, with all its hooks, and, during an evaluation, every few images. A
second signal does at once what it would do without this module.
"""

import contextlib
import os
import signal
import threading

from detectron2.utils import comm
from torch.utils.data import DataLoader

from retina_plugin.core.comm import any_rank
from retina_plugin.data.worker_init import ignore_signals

# EX_TEMPFAIL of sysexits.h: try again later, here with --resume.
EXIT_INTERRUPTED = 75
IMAGES_BETWEEN_CHECKS = 8


class TrainingInterrupted(KeyboardInterrupt):
    """A signal has ended the training after a checkpoint was saved.

    A ``KeyboardInterrupt``, for who calls ``RetinaTrainer.train()`` from a notebook, a script or a search: what lets
    Ctrl-C through lets this through. ``train_net.py`` ends with :data:`EXIT_INTERRUPTED`.
    """


class EvaluationInterrupted(Exception):
    """Leaves an evaluation, in all processes at the same image."""


class _Request:
    """Whether this process has got a signal. There is one: signals are the process's."""

    def __init__(self):
        self.signal_name = None
        self.handlers_before = {}
        self.process = None

    def receive(self, number, frame):
        if os.getpid() != self.process:  # a worker that was just forked
            return
        self.signal_name = signal.Signals(number).name
        self.put_back()  # for the second signal
        if comm.is_main_process():
            text = f"{self.signal_name}: stopping with a checkpoint after this iteration; again to end at once\n"
            os.write(2, text.encode())  # not through logging: the signal may have come in the middle of a line

    def put_back(self):
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)


_request = _Request()


@contextlib.contextmanager
def watching():
    """Take note of signals; the handlers there were are back at the end.

    Only in the main thread, as Python has signals there alone. Handlers that are not Python's own or the system's
    belong to somebody who has other plans with the signal, and stay.
    """
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    _request.signal_name, _request.process, _request.handlers_before = None, os.getpid(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        _request.handlers_before = {number: handler for number, handler in before.items() if handler in defaults}
    for number in _request.handlers_before:
        signal.signal(number, _request.receive)
    try:
        yield
    finally:
        _request.put_back()
        _request.process = None


def requested():
    """The name of the signal that this process got while :func:`watching`, or None."""
    return _request.signal_name


class InterruptibleLoader:
    """A test loader that an evaluation within a training can be left from.

    Raises:
        EvaluationInterrupted: a process has got a signal; from ``next()``, every few images.
    """

    def __init__(self, loader):
        self._loader = loader
        if isinstance(loader, DataLoader) and loader.worker_init_fn is None:
            loader.worker_init_fn = ignore_signals

    def __len__(self):
        return len(self._loader)

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __iter__(self):
        # Processes have numbers of images that differ by one: all take part in those checks that all come to.
        last = min(comm.all_gather(len(self._loader))) if _request.process else 0
        for i, batch in enumerate(self._loader):
            if i < last and i % IMAGES_BETWEEN_CHECKS == 0 and any_rank(requested()):
                raise EvaluationInterrupted
            yield batch
