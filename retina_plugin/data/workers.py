"""Signals of data loader workers."""

import multiprocessing
import os
import signal
import threading


def ignore_signals(worker_id: int) -> None:
    """``worker_init_fn`` of data loaders: a signal to a whole group of processes does not end the workers.

    The training process needs its workers until its iteration is done. SIGTERM from the training process itself, which
    ends its workers so, still ends them: Python waits for their end before it exits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        # Handlers in Python are not told who sent a signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_signal_of, args=(parent.pid,), daemon=True).start()


def _end_with_signal_of(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own workers: another code would count as a failure
