"""Runs a job in one or more processes, which Detectron2's ``launch`` or torchrun starts.

Added to Detectron2's ``launch``: the error of the rank that failed first, the exit code, signals that are passed on,
and ranks that end with their parent. Restarts and elastic jobs are torchrun's.
"""

import argparse
import contextlib
import gc
import importlib
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import torch
from detectron2.config import CfgNode
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch import distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from retina_plugin.config.imports import import_modules
from retina_plugin.core.cores import num_cores
from retina_plugin.core.errors import ConfigError, LaunchError, UserError
from retina_plugin.core.files import atomic_write
from retina_plugin.engine.arguments import Processes, processes_of

TIMEOUT = DEFAULT_TIMEOUT  # of a rank that waits for the others, at the start and later

Job = Callable[[CfgNode, argparse.Namespace], object]


def launch(main: Job, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run ``main(cfg, args)`` on every rank of a job.

    A job of one process runs in this process. Otherwise Detectron2's ``launch`` starts a process for each GPU of this
    machine (``--num-gpus``), or torchrun has started all processes. With ``MODEL.DEVICE`` cpu, ranks communicate by
    Gloo. Unless ``OMP_NUM_THREADS`` is set, the ranks of a machine share its cores. A rank waits up to 30 minutes for
    the others (``TIMEOUT``, which is Detectron2's), at the start and later.

    Args:
        main: a function of a module, or a ``functools.partial`` of one. Ranks import the modules of ``cfg.IMPORTS``
            before they unpickle ``main``, ``cfg`` and ``args``.
        cfg: the configuration, from :func:`load_config`.
        args: parsed by :func:`argument_parser`.

    Raises:
        UserError: raised by the rank that failed first.
        LaunchError: another error of that rank, with its traceback, or how the rank was killed; or the ranks did not
            come together.
        SystemExit: no rank failed, and one called ``sys.exit(CODE)``. After SIGTERM or SIGINT, which are passed on to
            the ranks, the code is 128 plus the number of the signal if the ranks do not handle the signal.
    """
    processes = processes_of(args)
    if processes.world_size == 1:
        main(cfg, args)
    elif processes.local_rank is None:
        _start_ranks(main, cfg, args, processes)
    else:
        _run_under_torchrun(main, cfg, args, processes)


def _run_under_torchrun(main: Job, cfg: CfgNode, args: argparse.Namespace, processes: Processes) -> None:
    if cfg.MODEL.DEVICE == "cpu" and torch.cuda.is_available():
        raise ConfigError(["MODEL.DEVICE is cpu, but there are GPUs. Hide them: CUDA_VISIBLE_DEVICES='' torchrun ..."])
    # What Detectron2's launch runs in the processes that it starts.
    worker = importlib.import_module("detectron2.engine.launch")._distributed_worker
    per_machine, _, machine_rank, local_rank = processes
    sizes = processes.world_size, per_machine, machine_rank
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"
    if local_rank == 0:
        _announce(processes, address)
    try:
        worker(local_rank, _run_job, *sizes, "env://", (main, cfg, args, per_machine), TIMEOUT)
    except UserError:
        raise
    except Exception as error:
        if not dist.is_initialized() and isinstance(error, dist.DistError):
            raise LaunchError(_not_joined(processes.rank, processes, address, str(error))) from error
        get_error_handler().record_exception(error)  # torchrun prints the first one as the root cause
        time.sleep(1)  # torchrun compares whole seconds, and ranks that lose the connection to this one fail later
        raise
    finally:
        _end_gloo()


def _run_job(main: Job, cfg: CfgNode, args: argparse.Namespace, per_machine: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:  # otherwise torch uses all cores on every rank
        torch.set_num_threads(max(1, num_cores() // per_machine))
    main(cfg, args)
    _leave_process_group()


def _end_gloo() -> None:
    if dist.is_initialized() and dist.get_backend() == "gloo":
        _leave_process_group()


def _leave_process_group() -> None:
    # Threads of Gloo that outlive the interpreter abort the process, which changes the exit code. They end with the
    # last reference to the group, which a model in a cycle of references holds.
    gc.collect()
    dist.destroy_process_group()


def _start_ranks(main: Job, cfg: CfgNode, args: argparse.Namespace, processes: Processes) -> None:
    """Start the ranks of this machine, wait for their end, and raise the error that came first."""
    died: ProcessException | None = None
    _announce(processes, args.dist_url)
    job = pickle.dumps((main, cfg, args, processes.per_machine))
    with tempfile.TemporaryDirectory(prefix="retina_plugin_") as folder:
        with _pass_on_signals() as signals, _hidden_gpus(cfg.MODEL.DEVICE == "cpu"):
            try:
                words = (job, list(cfg.IMPORTS), folder)
                detectron2_launch(_run_and_report, *processes[:3], args.dist_url, words, TIMEOUT)
            except ProcessException as exception:
                died = exception
        reports = {int(path.stem): pickle.loads(path.read_bytes()) for path in Path(folder).glob("*.report")}
    dead_rank = None if died is None else processes.rank + died.error_index
    # Without a report, this rank was killed, and the errors of the other ranks may be a consequence.
    killed = dead_rank is not None and dead_rank not in reports
    if signals and (killed or (died is None and len(reports) < processes.per_machine)):
        raise SystemExit(128 + signals[-1])
    if killed and (network := re.search(r"^torch\.distributed\.Dist\w+Error: (.*)", str(died), re.MULTILINE)):
        raise LaunchError(_not_joined(dead_rank, processes, f"{args.dist_url} (--dist-url)", network[1]))
    if killed:
        raise LaunchError(f"rank {dead_rank} of {processes.world_size} {_how(died)}")
    errors = [error for _, error in sorted(reports.values(), key=lambda report: report[0]) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, SystemExit)):
        raise error


def _announce(processes: Processes, address: str) -> None:
    """Tell what a job of several machines waits for: a wrong address is no error for a long time."""
    if processes.machines > 1:
        print(
            f"machine {processes.machine_rank} of {processes.machines}: connecting to {address}, for up to "
            f"{TIMEOUT.total_seconds() / 60:g} minutes",
            file=sys.stderr,
            flush=True,
        )


def _not_joined(rank: int | None, processes: Processes, address: str, error: str) -> str:
    reason = error.partition("\n")[0].strip().rstrip(".")
    return (
        f"rank {rank} of {processes.world_size} did not come together with the others at {address}: {reason}. Is it "
        "the address of machine 0 as the others see it, is the port open, and did all machines start?"
    )


def _how(died: ProcessException | None) -> str:
    if isinstance(died, ProcessExitedException):
        return f"was killed by {died.signal_name}" if died.signal_name else f"ended with exit code {died.exit_code}"
    return f"failed: {str(died).strip()}"  # before the job began, as in connecting to the other ranks


def _run_and_report(job: bytes, imports: list[str], folder: str) -> None:
    """Run the job on a rank that Detectron2's ``launch`` started, and write (time of the end, error) to a file.

    A rank that fails exits with code 1, and torch ends the other ranks. A rank that calls ``sys.exit(CODE)`` exits with
    0, so that the other ranks can end by themselves.
    """
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    os.setpgrp()  # the terminal sends Ctrl-C to the parent's group, and the parent passes it on
    rank = comm.get_rank()
    failed = f"rank {rank} of {comm.get_world_size()} failed:\n\n"
    error: BaseException | None = None
    try:
        import_modules(imports)
        _run_job(*pickle.loads(job))
    except UserError as mistake:
        error = mistake
    except SystemExit as end:
        if isinstance(end.code, str):
            error = LaunchError(failed + end.code)
        elif end.code:
            error = end
    except Exception:
        error = LaunchError(failed + traceback.format_exc())
    report = pickle.dumps((time.monotonic(), error))  # before _end_gloo, whereupon the other ranks fail
    atomic_write(Path(folder, f"{rank}.report"), lambda file: file.write(report))
    _end_gloo()
    if isinstance(error, UserError):
        sys.exit(1)


def _end_with_parent(folder: str) -> None:
    # Also if the parent is killed by SIGKILL. torch sends SIGINT then, which the job may handle.
    if parent := multiprocessing.parent_process():
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)  # which the parent cannot do any more
        os._exit(1)


@contextlib.contextmanager
def _pass_on_signals() -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to the child processes. Yields the list of the signals so far."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        if not children:
            sys.exit(128 + number)
        for pid in children:
            # While ranks connect, before they call setpgrp, SIGINT would not interrupt them.
            os.kill(pid, number if os.getpgid(pid) == pid else signal.SIGTERM)

    is_main_thread = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main_thread else ()
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _hidden_gpus(hide: bool) -> Iterator[None]:
    """Hide all GPUs from the processes that are started meanwhile, which then communicate by Gloo."""
    name = "CUDA_VISIBLE_DEVICES"
    previous = os.environ.get(name)
    if hide:
        os.environ[name] = ""
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if previous is not None:
            os.environ[name] = previous
