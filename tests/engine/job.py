"""A job whose ranks end in a way that the first argument names, as END or END:RANK. test_launch.py starts it."""

import retina_plugin  # first: makes Detectron2 importable  # noqa: F401

import os  # isort: skip
import signal  # isort: skip
import sys  # isort: skip
import time  # isort: skip

import torch  # isort: skip
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.utils import comm
from torch import distributed as dist

from retina_plugin import ConfigError, engine
from retina_plugin.core.errors import UserError, format_error


def tell(line):
    os.write(1, f"{line}\n".encode())  # in one piece: print() writes the end of the line by itself


def main(cfg, args):
    rank = comm.get_rank()
    total = torch.tensor(rank)
    dist.all_reduce(total)
    threads = torch.get_num_threads()
    tell(
        f"rank {rank} of {comm.get_world_size()}, sum {total.item()}, local {comm.get_local_rank()}, {threads} threads"
    )
    end, _, who = cfg.END.partition(":")
    ENDS[end](rank, rank == int(who or 0))


def well(rank, is_it):
    """With a step of data-parallel training, whose gradient is the mean of the ranks."""
    model = defaults.create_ddp_model(torch.nn.Linear(1, 1), broadcast_buffers=False)
    model(torch.full((1, 1), float(rank))).backward()
    (weight, _) = model.parameters()
    assert weight.grad.item() == (comm.get_world_size() - 1) / 2


def fail(rank, is_it):
    if is_it:
        raise ValueError(f"rank {rank} broke")
    dist.barrier()  # which the failed rank never reaches


def refuse(rank, is_it):
    """One rank finds a mistake of the user's while the others stop."""
    if is_it:
        raise ConfigError(["one thing", "another"])
    sys.exit(75)


def give_up(rank, is_it):
    if is_it:
        sys.exit("nothing to do")
    dist.barrier()


def stop(rank, is_it):
    """The first rank to end leaves the others the time to end by themselves."""
    pids = comm.all_gather(os.getpid())
    while is_it and any(runs(pid) for pid in pids if pid != os.getpid()):
        time.sleep(0.05)
    sys.exit(75)


def die(rank, is_it):
    if is_it:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def stay(rank, is_it):
    """Tell of every signal, and end by none."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: tell(f"rank {rank} got {number}"))
    tell(f"pid {os.getpid()} waits")
    time.sleep(600)


def wait(rank, is_it):
    tell("waits")
    time.sleep(600)


def runs(pid):
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


ENDS = {f.__name__: f for f in (well, fail, refuse, give_up, stop, die, stay, wait)}


def make_cfg(end, imports=()):
    """The keys that the launch reads, and how the job ends."""
    return CfgNode({"END": end, "MODEL": {"DEVICE": "cpu"}, "IMPORTS": list(imports)})


if __name__ == "__main__":
    cfg = make_cfg(sys.argv.pop(1))
    try:
        engine.launch(main, cfg, engine.argument_parser().parse_args())
    except UserError as error:
        sys.exit(format_error(error))
