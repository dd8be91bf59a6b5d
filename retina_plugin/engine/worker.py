"""What surrounds the work of one process among several: its share of the machine, and how its end becomes known."""

import os
import pickle
import sys
import threading
import time
import traceback
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import distributed as dist

from retina_plugin.core.errors import LaunchError, UserError


class Report(NamedTuple):
    """How a process ended.

    Attributes:
        time: when, by the clock that all processes of a machine share.
        rank: of all processes of the job.
        exit_code: that it asked for.
        mistake: the user's, as the exception that says so; or None.
        traceback: of a failure, as text; or None.
    """

    time: float
    rank: int
    exit_code: int = 0
    mistake: Exception | None = None
    traceback: str | None = None

    @property
    def failed(self):
        return self.mistake is not None or self.traceback is not None

    def error(self, world_size):
        """The exception to raise for a failure."""
        return self.mistake or LaunchError(f"rank {self.rank} of {world_size} failed:\n\n{self.traceback}")


def work(main, cfg, args, per_machine):
    """Call ``main(cfg, args)`` with this process's share of the cores. The process group is there."""
    # Every process would take all cores for itself. torchrun sets the variable for the same reason.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // per_machine))
    main(cfg, args)


def work_and_report(main, cfg, args, per_machine, folder):
    """Call :func:`work` in a process that :func:`retina_plugin.engine.launch` has started.

    A process that fails ends with exit code 1, at which all others are ended. One that calls ``sys.exit(CODE)`` ends
    with 0: the others may still be at the same.

    Args:
        folder: where the ``Report`` goes.
    """
    _end_with_parent()
    # Ctrl-C reaches the processes through the parent, as SIGTERM does; from the terminal, it would come twice.
    os.setpgrp()
    report = Report(0.0, comm.get_rank())
    try:
        work(main, cfg, args, per_machine)
        dist.destroy_process_group()
    except SystemExit as end:
        if isinstance(end.code, str):
            report = report._replace(traceback=end.code)
        else:
            report = report._replace(exit_code=end.code or 0)
    except UserError as mistake:
        report = report._replace(mistake=mistake)
    except Exception:
        report = report._replace(traceback=traceback.format_exc())
    _write(report._replace(time=time.monotonic()), Path(folder))
    if report.failed:
        sys.exit(1)


def read_reports(folder):
    """All ``Report`` of a folder, the first to end first."""
    return sorted(pickle.loads(path.read_bytes()) for path in Path(folder).glob("*.report"))


def num_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _write(report, folder):
    unfinished = folder / f"{report.rank}.unfinished"
    unfinished.write_bytes(pickle.dumps(report))
    unfinished.rename(folder / f"{report.rank}.report")


def _end_with_parent():
    # Also where the parent was killed and could end nobody. torch sends SIGINT then, which a process may catch.
    def wait():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
