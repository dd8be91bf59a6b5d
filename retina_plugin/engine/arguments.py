"""The command line of a job, and the processes that it and the environment ask for."""

import os
import re
from typing import NamedTuple

from detectron2.engine import default_argument_parser

from retina_plugin.core.errors import ConfigError

# What torchrun, or another launcher that has started this process as one of many, tells it.
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes(NamedTuple):
    """The processes of a job.

    Attributes:
        per_machine: on each machine.
        machines: how many.
        machine_rank: number of this machine, from 0.
        local_rank: number of this process on its machine where a launcher has started it, else None.
    """

    per_machine: int
    machines: int
    machine_rank: int = 0
    local_rank: int | None = None

    @property
    def world_size(self):
        return self.per_machine * self.machines

    @property
    def first_rank(self):
        """Of this machine's."""
        return self.per_machine * self.machine_rank

    @property
    def is_first(self):
        """Whether this process comes before all others of the job: the first machine's, or rank 0 of a launcher's."""
        return self.machine_rank == 0 and not self.local_rank


def argument_parser(epilog=None):
    """Detectron2's ``default_argument_parser`` with what this plugin adds.

    ``--num-gpus`` is None where the user leaves it to the default (1) or to torchrun, ``--dist-url`` is "auto".
    """
    parser = default_argument_parser(epilog)
    # Detectron2's port belongs to the user's id: a user's second job would meet the first.
    parser.set_defaults(num_gpus=None, dist_url="auto")
    parser.add_argument(
        "--dist-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long the machines of a job wait for each other at the start, by default 600",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start a new run where OUTPUT_DIR holds another one, whose files are moved to OUTPUT_DIR/previous_run_N",
    )
    return parser


def processes_of(args):
    """Read from arguments and environment which processes a job has.

    Args:
        args: of :func:`argument_parser`, or of Detectron2's own.

    Returns:
        Processes

    Raises:
        ConfigError: they do not make a job, or contradict each other.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        processes, problems = _of_environment(args)
    else:
        processes, problems = _of_arguments(args)
    problems = list(problems)
    if problems:
        raise ConfigError(problems)
    return processes


def _of_arguments(args):
    num_gpus = 1 if args.num_gpus is None else args.num_gpus
    rank = getattr(args, "machine_rank", 0)
    return Processes(num_gpus, args.num_machines, rank), _argument_problems(args, num_gpus, rank)


def _argument_problems(args, num_gpus, rank):
    for option, value in (("--num-gpus", num_gpus), ("--num-machines", args.num_machines)):
        if value < 1:
            yield f"{option} is {value}; it must be at least 1"
    if not 0 <= rank < max(args.num_machines, 1):
        yield (
            f"--machine-rank is {rank}, but with --num-machines {args.num_machines} the machines are 0 to "
            f"{max(args.num_machines, 1) - 1}"
        )
    url = getattr(args, "dist_url", "auto")
    if args.num_machines > 1 and url == "auto":
        yield (
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, the same on every machine: the name "
            "or address of machine 0 as the others see it, and a port that is free there"
        )
    elif url != "auto" and not re.fullmatch(r"tcp://(\[[0-9a-fA-F:.]+\]|[^:/\[\]]+):\d{1,5}", url):
        yield f"--dist-url is '{url}', which is not tcp://HOST:PORT"
    if getattr(args, "dist_timeout", 1) <= 0:
        yield f"--dist-timeout is {args.dist_timeout}; it must be more than 0 seconds"


def _of_environment(args):
    missing = [name for name in _OF_A_LAUNCHER if name not in os.environ]
    if missing:
        return None, [
            f"RANK and WORLD_SIZE are set in the environment, as torchrun does, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not. Start with torchrun, set all of them, or unset both"
        ]
    if "LOCAL_WORLD_SIZE" not in os.environ and args.num_gpus is None:
        return None, ["LOCAL_WORLD_SIZE is not set in the environment: give --num-gpus, the processes of each machine"]
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in _OF_A_LAUNCHER[:3])
        per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", args.num_gpus))
    except ValueError as error:
        return None, [f"RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be integers: {error}"]
    processes = Processes(per_machine, world_size // max(per_machine, 1), rank // max(per_machine, 1), local_rank)
    return processes, _environment_problems(args, processes, rank, world_size)


def _environment_problems(args, processes, rank, world_size):
    said = f"the environment, as torchrun sets it, says WORLD_SIZE {world_size} and RANK {rank}"
    if args.num_gpus not in (None, processes.per_machine):
        yield (
            f"--num-gpus {args.num_gpus}, but {said} with {processes.per_machine} processes a machine. "
            "Leave --num-gpus out under torchrun"
        )
    if args.num_machines not in (1, processes.machines):
        yield f"--num-machines {args.num_machines}, but {said}. Leave --num-machines out under torchrun"
    consistent = (
        processes.world_size == world_size
        and 0 <= rank < world_size
        and rank == processes.first_rank + processes.local_rank
    )
    if not consistent:
        yield (
            f"{said}, LOCAL_RANK {processes.local_rank} of {processes.per_machine} processes a machine. Detectron2 "
            "needs as many processes on every machine, with consecutive ranks"
        )
