"""What each process that reads images for a training process does first."""

import signal


def ignore_signals(worker_id):
    """A ``worker_init_fn`` of data loaders.

    Ctrl-C, and whoever ends a whole group of processes, reach the workers as well, whose parent needs them until its
    iteration is done. It ends them with a SIGTERM of its own where they do not end by themselves, the second one here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
