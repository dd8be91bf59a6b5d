"""A job whose processes end in a way that the first argument names: what test_launch.py starts."""

import retina_plugin  # first: makes Detectron2 importable  # noqa: F401

import os  # isort: skip
import signal  # isort: skip
import sys  # isort: skip
import time  # isort: skip
from types import SimpleNamespace  # isort: skip

import torch  # isort: skip
from detectron2.engine import defaults
from detectron2.utils import comm
from torch import distributed as dist

from retina_plugin import engine
from retina_plugin.core.errors import LaunchError


def tell(line):
    os.write(1, f"{line}\n".encode())  # in one piece: print() writes the end of the line by itself


def main(cfg, args):
    rank = comm.get_rank()
    total = torch.tensor(rank)
    dist.all_reduce(total)
    tell(f"rank {rank} of {comm.get_world_size()}, sum {total.item()}, local {comm.get_local_rank()}")
    ENDS[cfg.end](rank)


def well(rank):
    """With a step of data-parallel training, whose gradient is the mean of the ranks."""
    model = defaults.create_ddp_model(torch.nn.Linear(1, 1), broadcast_buffers=False)
    model(torch.full((1, 1), float(rank))).backward()
    (weight, _) = model.parameters()
    assert weight.grad.item() == (comm.get_world_size() - 1) / 2


def fail(rank):
    if rank == 1:
        raise ValueError("rank 1 broke")
    dist.barrier()  # which rank 1 never reaches


def stop(rank):
    """The first to end leaves the others the time to end by themselves."""
    pids = comm.all_gather(os.getpid())
    while rank == 1 and runs(pids[0]):
        time.sleep(0.05)
    sys.exit(75)


def die(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def stay(rank):
    """Tell of every signal, and end by none."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: tell(f"rank {rank} got {number}"))
    tell(f"pid {os.getpid()} waits")
    time.sleep(600)


def runs(pid):
    """Whether a process is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


ENDS = {"well": well, "fail": fail, "stop": stop, "die": die, "stay": stay}


def make_cfg(end):
    """What the launch reads of a configuration, and how the job ends."""
    return SimpleNamespace(end=end, MODEL=SimpleNamespace(DEVICE="cpu"))


if __name__ == "__main__":
    cfg = make_cfg(sys.argv.pop(1))
    try:
        engine.launch(main, cfg, engine.argument_parser().parse_args())
    except LaunchError as error:
        sys.exit(f"error: {error}")
