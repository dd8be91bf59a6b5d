"""A job whose processes end in a way that the first argument names: what test_launch.py starts."""

import retina_plugin  # first: makes Detectron2 importable  # noqa: F401

import os  # isort: skip
import signal  # isort: skip
import sys  # isort: skip
from types import SimpleNamespace  # isort: skip

import torch  # isort: skip
from detectron2.utils import comm
from torch import distributed as dist

from retina_plugin import ConfigError, engine


def main(cfg, args):
    rank = comm.get_rank()
    total = torch.tensor(rank)
    dist.all_reduce(total)
    print(f"rank {rank} of {comm.get_world_size()}, sum {total.item()}, local {comm.get_local_rank()}", flush=True)
    ENDS[cfg.end](rank)


def fail(rank):
    if rank == 1:
        raise ValueError("rank 1 broke")
    dist.barrier()  # which rank 1 never reaches


def refuse(rank):
    raise ConfigError(["one thing", "another thing"])


def stop(rank):
    """The first to end leaves the others the time to end by themselves."""
    pids = comm.all_gather(os.getpid())
    while rank == 1 and _runs(pids[0]):
        signal.sigtimedwait([], 0.05)
    sys.exit(75)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def die(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def wait(rank):
    """Until SIGTERM or SIGINT."""
    seen = []
    numbers = signal.SIGTERM, signal.SIGINT
    for number in numbers:
        signal.signal(number, lambda number, frame: seen.append(number))
    print(f"pid {os.getpid()} waits", flush=True)
    while not seen:
        signal.sigtimedwait([], 0.05)
    print(f"rank {rank} got {seen[0]}", flush=True)
    sys.exit(75)


def stay(rank):
    """Whatever comes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    print(f"pid {os.getpid()} waits", flush=True)
    signal.sigtimedwait([], 600)


ENDS = {"well": lambda rank: None}
ENDS.update({function.__name__: function for function in (fail, refuse, stop, die, wait, stay)})

if __name__ == "__main__":
    cfg = SimpleNamespace(end=sys.argv.pop(1), MODEL=SimpleNamespace(DEVICE="cpu"))
    args = engine.argument_parser().parse_args()
    try:
        engine.launch(main, cfg, args)
    except ConfigError as error:
        sys.exit("\n".join(f"error: {problem}" for problem in error.problems))
    except engine.LaunchError as error:
        sys.exit(f"error: {error}")
