"""Which processes a job has, from its command line and from what torchrun sets."""

import re

import pytest

from retina_plugin import ConfigError
from retina_plugin.engine import argument_parser
from retina_plugin.engine.arguments import Processes, processes_of

OF_TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    """environment(**variables): those of a launcher, and no others of its names."""

    def set_to(**variables):
        for name in OF_TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_to()
    return set_to


def read(*words):
    return processes_of(argument_parser().parse_args(words))


@pytest.mark.parametrize(
    ("words", "expected", "world_size"),
    [
        ("", Processes(1, 1, 0), 1),
        ("--num-gpus 4", Processes(4, 1, 0), 4),
        ("--num-gpus 8 --num-machines 3 --machine-rank 2 --dist-url tcp://node0:29500", Processes(8, 3, 2), 24),
        ("--num-machines 2 --dist-url tcp://[fe80::1]:29500", Processes(1, 2, 0), 2),
    ],
)
def test_from_the_command_line(environment, words, expected, world_size):
    processes = read(*words.split())
    assert processes == expected and processes.world_size == world_size


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--num-gpus 0", ["--num-gpus is 0; it must be at least 1"]),
        ("--machine-rank 1", ["--machine-rank is 1, but with --num-machines 1 the machines are 0 to 0"]),
        ("--num-machines 2", ["--num-machines 2 needs --dist-url tcp://HOST:PORT"]),
        ("--num-machines 2 --machine-rank -1 --dist-url node0:1", ["--machine-rank is -1", "not tcp://HOST:PORT"]),
        ("--num-machines 2 --dist-url env://", ["--dist-url is 'env://', which is not tcp://HOST:PORT"]),
    ],
)
def test_a_command_line_that_is_no_job(environment, words, parts):
    with pytest.raises(ConfigError) as error:
        read(*words.split())
    assert len(error.value.problems) == len(parts)
    for part, line in zip(parts, error.value.problems):
        assert part in line


def test_from_torchrun(environment):
    environment(**OF_TORCHRUN)
    expected = Processes(per_machine=4, machines=2, machine_rank=1, local_rank=1)
    assert read() == read("--num-gpus", "4") == read("--num-gpus", "4", "--num-machines", "2") == expected


def test_from_a_launcher_that_does_not_say_how_many_a_machine_has(environment):
    environment(**{name: value for name, value in OF_TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"})
    assert read("--num-gpus", "4").machines == 2
    with pytest.raises(ConfigError, match="but not LOCAL_WORLD_SIZE .or give --num-gpus, the processes per machine."):
        read()


@pytest.mark.parametrize(
    ("words", "changes", "line"),
    [
        ("--num-gpus 2", {}, "--num-gpus is 2, but 4 by the environment, as under torchrun. Leave --num-gpus out"),
        ("--num-machines 3", {}, "--num-machines is 3, but 2 by the environment, as under torchrun. Leave "),
        ("", {"LOCAL_RANK": "2"}, "the environment has RANK 5, WORLD_SIZE 8 and LOCAL_RANK 2, with 4 processes per "),
        ("", {"RANK": "9"}, "as many processes on every machine, with consecutive ranks"),
        ("", {"WORLD_SIZE": "9"}, "as many processes on every machine, with consecutive ranks"),
        ("", {"LOCAL_WORLD_SIZE": "0"}, "as many processes on every machine, with consecutive ranks"),
        ("", {"RANK": "first"}, "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be integers"),
    ],
)
def test_a_torchrun_that_contradicts(environment, words, changes, line):
    environment(**{**OF_TORCHRUN, **changes})
    with pytest.raises(ConfigError, match=re.escape(line)) as error:
        read(*words.split())
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        (("RANK", "WORLD_SIZE"), "LOCAL_RANK, MASTER_ADDR, MASTER_PORT, LOCAL_WORLD_SIZE"),
        (("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), "RANK"),
        (("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"), "MASTER_PORT"),
    ],
)
def test_an_incomplete_environment(environment, present, missing):
    environment(**{name: OF_TORCHRUN[name] for name in present})
    with pytest.raises(ConfigError, match=f"as under torchrun, but not {missing}") as error:
        read()
    assert len(error.value.problems) == 1
