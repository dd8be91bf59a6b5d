"""Run a job on as many processes and machines as it asks for, and end all of them as one.

The processes are started by Detectron2's ``launch``, or by torchrun before. What is added is what happens when
something goes wrong: who did not come, which rank failed with what, which exit code, and that nobody is left.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time

import torch
from detectron2.engine import launch as detectron2_launch
from torch import distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from retina_plugin.core.errors import ConfigError, LaunchError, UserError
from retina_plugin.engine import worker
from retina_plugin.engine.arguments import processes_of
from retina_plugin.engine.meeting import Meeting, environment

# As long as torch leaves a process after SIGTERM.
_GRACE_SECONDS = 30


def launch(main, cfg, args):
    """Run ``main(cfg, args)`` in every process of a job.

    With one process, this is the process. Otherwise a process is started for each GPU of this machine
    (``--num-gpus``; with ``MODEL.DEVICE`` cpu, they share its cores), or torchrun has started them all.

    Machines wait for each other for ``--dist-timeout`` seconds. Later, a process waits at most 30 minutes
    (Detectron2's ``DEFAULT_TIMEOUT``) for the others, as in an all-reduce.

    Args:
        main: function of a module, as it is found by its name in the processes that are started.
        cfg: of :func:`load_config`.
        args: of :func:`argument_parser`.

    Raises:
        UserError: of a process, whichever was first.
        LaunchError: a machine did not come, or a process failed; its traceback is in the message.
        SystemExit: a process ended so, and none failed. SIGTERM and SIGINT are passed on to the processes;
            where one is ended by it, the exit code is 128 and the number of the signal.
    """
    processes = processes_of(args)
    if processes.world_size == 1:
        detectron2_launch(main, 1, args=(cfg, args))
    elif processes.local_rank is not None:
        _join(main, cfg, args, processes)
    else:
        _spawn(main, cfg, args, processes)


def _join(main, cfg, args, processes):
    """Be one of the processes that torchrun has started."""
    if cfg.MODEL.DEVICE == "cpu" and torch.cuda.is_available():
        raise ConfigError(["MODEL.DEVICE is cpu, but there are GPUs. Hide them: CUDA_VISIBLE_DEVICES='' torchrun ..."])
    meeting = None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # or torchrun's agents have met
        url = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        job = f"WORLD_SIZE {processes.world_size}"
        rank = processes.first_rank + processes.local_rank
        meeting = Meeting("rank", rank, processes.world_size, job, url, args.dist_timeout)
    with meeting.for_workers() if meeting else contextlib.nullcontext():
        # What Detectron2 runs in the processes that it starts itself.
        run = importlib.import_module("detectron2.engine.launch")._distributed_worker
        size = processes.world_size, processes.per_machine, processes.machine_rank
        try:
            run(processes.local_rank, worker.work, *size, "env://", (main, cfg, args, processes.per_machine))
        except UserError:
            raise
        except Exception as error:
            get_error_handler().record_exception(error)  # torchrun shows the first one's at the end
            raise
        finally:
            # Threads of Gloo that outlive the interpreter abort the process, whatever its exit code was to be.
            if dist.is_initialized() and dist.get_backend() == "gloo":
                dist.destroy_process_group()
    if meeting:
        meeting.leave()


def _spawn(main, cfg, args, processes):
    """Start the processes of this machine and wait for them."""
    url = "tcp://127.0.0.1:0" if args.dist_url == "auto" else args.dist_url
    job = f"--num-machines {processes.machines} --num-gpus {processes.per_machine}"
    meeting = Meeting("machine", processes.machine_rank, processes.machines, job, url, args.dist_timeout)
    children = _Children()
    with tempfile.TemporaryDirectory(prefix="retina_plugin_") as reports:
        try:
            with children.get_signals(), meeting.watch(children.end), meeting.for_workers(), _visible_gpus(cfg):
                detectron2_launch(
                    worker.work_and_report,
                    processes.per_machine,
                    num_machines=processes.machines,
                    machine_rank=processes.machine_rank,
                    dist_url=meeting.url,
                    args=(main, cfg, args, processes.per_machine, reports),
                )
            died = None
        except (ProcessRaisedException, ProcessExitedException) as error:
            died = error
        _conclude(worker.read_reports(reports), died, processes, children, meeting)


def _conclude(reports, died, processes, children, meeting):
    """Leave with what the user has to know of how the processes ended."""
    failure = next((report for report in reports if report.failed), None)
    # torch tells of the first that ended badly. One that left no report was killed, and what the others say came of it.
    silent = died and processes.first_rank + died.error_index not in [report.rank for report in reports]
    error = None
    if children.ended_because:
        error = LaunchError(children.ended_because)
    elif children.signal and (silent or (not died and len(reports) < processes.per_machine)):
        error = SystemExit(128 + children.signal)
    elif silent:
        error = LaunchError(f"rank {processes.first_rank + died.error_index} of {processes.world_size} {_how(died)}")
    elif failure:
        error = failure.error(processes.world_size)
    if error:
        stopped = isinstance(error, SystemExit) and f"stopped by {children.signal.name}"
        meeting.tell_failure(stopped or str(error).strip().splitlines()[-1])
        raise error
    meeting.leave()
    code = next((report.exit_code for report in reports if report.exit_code), 0)
    if code:
        raise SystemExit(code)


def _how(died):
    if isinstance(died, ProcessRaisedException):  # before its work began
        return f"failed: {died}"
    if died.signal_name:
        return f"was killed by {died.signal_name}"
    return f"ended with exit code {died.exit_code}, without an exception"


class _Children:
    """The processes that this one has started.

    Attributes:
        signal: the last that was passed on to them, or None.
        ended_because: why they were ended from here, or None.
    """

    def __init__(self):
        self.signal = None
        self.ended_because = None

    @contextlib.contextmanager
    def get_signals(self):
        """Pass SIGTERM and SIGINT on to them; this process waits for what they do."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to another part of the program
            return

        def pass_on(number, frame):
            self.signal = signal.Signals(number)
            for child in multiprocessing.active_children():
                os.kill(child.pid, number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self, reason):
        """End all of them."""
        self.ended_because = reason
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        while any(child.is_alive() for child in children) and time.monotonic() < deadline:
            time.sleep(0.1)
        for child in children:
            child.kill()


def _visible_gpus(cfg):
    # Where the work is the CPU's, processes that see no GPU communicate by Gloo.
    return environment(CUDA_VISIBLE_DEVICES="") if cfg.MODEL.DEVICE == "cpu" else contextlib.nullcontext()
