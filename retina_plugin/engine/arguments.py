"""The command line of a job, and the processes that the command line or torchrun asks for."""

import argparse
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from detectron2.engine import default_argument_parser

from retina_plugin.config import add_config_arguments
from retina_plugin.core.errors import ConfigError

# How torchrun numbers the processes that it starts.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class Processes(NamedTuple):
    """The processes of a job, and the number of this machine.

    ``local_rank`` is the number of this process on this machine if torchrun started this process, else None.
    """

    per_machine: int
    machines: int
    machine_rank: int = 0
    local_rank: int | None = None

    @property
    def world_size(self) -> int:
        """Number of processes on all machines."""
        return self.per_machine * self.machines

    @property
    def rank(self) -> int:
        """Rank of this process or, before the processes are started, the first rank on this machine."""
        return self.per_machine * self.machine_rank + (self.local_rank or 0)


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Extend Detectron2's ``default_argument_parser`` by the arguments of this plugin.

    Defaults: ``--num-gpus`` is None, which means 1, or what torchrun says; ``--dist-url`` is "auto", a free port.
    """
    parser = default_argument_parser(epilog)
    parser.set_defaults(num_gpus=None, dist_url="auto")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start a new run where OUTPUT_DIR holds another one, whose files are moved to OUTPUT_DIR/previous_run_N",
    )
    add_config_arguments(parser)
    return parser


def processes_of(args: argparse.Namespace) -> Processes:
    """Read the processes of a job from the environment, if torchrun set it, or else from the command line.

    Raises:
        ConfigError: arguments or environment are invalid or contradict each other, with one line for each problem.
    """
    if any(name in os.environ for name in _RANKS):
        processes = _read_environment(args)
        problems = _contradictions(processes, args)
    else:
        processes = Processes(1 if args.num_gpus is None else args.num_gpus, args.num_machines, args.machine_rank)
        problems = _argument_problems(*processes[:3], args.dist_url)
    if lines := list(problems):
        raise ConfigError(lines)
    return processes


def _read_environment(args: argparse.Namespace) -> Processes:
    missing = [name for name in (*_RANKS, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if "LOCAL_WORLD_SIZE" not in os.environ and args.num_gpus is None:
        missing.append("LOCAL_WORLD_SIZE (or give --num-gpus, the processes per machine)")
    if missing:
        has = ", ".join(name for name in _RANKS if name in os.environ)
        advice = f"Start with torchrun, set all of them, or unset {has}"
        raise ConfigError([f"the environment has {has}, as under torchrun, but not {', '.join(missing)}. {advice}"])
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in _RANKS)
        per_machine = max(int(os.environ.get("LOCAL_WORLD_SIZE", args.num_gpus)), 1)
    except ValueError as error:
        raise ConfigError([f"{', '.join(_RANKS)} and LOCAL_WORLD_SIZE must be integers: {error}"]) from None
    processes = Processes(per_machine, world_size // per_machine, rank // per_machine, local_rank)
    if (processes.world_size, processes.rank) != (world_size, rank) or not 0 <= rank < world_size:
        raise ConfigError([
            f"the environment has RANK {rank}, WORLD_SIZE {world_size} and LOCAL_RANK {local_rank}, with {per_machine} "
            "processes per machine. Detectron2 needs as many processes on every machine, with consecutive ranks"
        ])  # fmt: skip
    return processes


def _contradictions(processes: Processes, args: argparse.Namespace) -> Iterator[str]:
    gpus = ("--num-gpus", args.num_gpus, None, processes.per_machine)
    machines = ("--num-machines", args.num_machines, 1, processes.machines)
    for option, given, default, said in (gpus, machines):
        if given not in (default, said):
            yield f"{option} is {given}, but {said} by the environment, as under torchrun. Leave {option} out"


def _argument_problems(num_gpus: int, machines: int, machine_rank: int, url: str) -> Iterator[str]:
    for option, value in (("--num-gpus", num_gpus), ("--num-machines", machines)):
        if value < 1:
            yield f"{option} is {value}; it must be at least 1"
    last = max(machines, 1) - 1
    if not 0 <= machine_rank <= last:
        yield f"--machine-rank is {machine_rank}, but with --num-machines {machines} the machines are 0 to {last}"
    if machines > 1 and url == "auto":
        yield (
            f"--num-machines {machines} needs --dist-url tcp://HOST:PORT, the same on every machine: the name or "
            "address of machine 0 as the others see it, and a port that is free there"
        )
    elif url != "auto" and not re.fullmatch(r"tcp://(\[[0-9a-fA-F:.]+\]|[^:/\[\]]+):\d{1,5}", url):
        yield f"--dist-url is '{url}', which is not tcp://HOST:PORT"
