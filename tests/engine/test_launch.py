"""Ranks are started and end together: errors, exit codes, signals, no process left behind. They really run (job.py)."""

import importlib
import json
import os
import re
import signal
import socket
import sys
import time
from datetime import timedelta
from functools import partial

import pytest
import torch

from retina_plugin import ConfigError, engine
from retina_plugin.config.imports import import_modules
from retina_plugin.core.errors import LaunchError

from . import job

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture
def start(python):
    """start(*words, launcher, **environment) -> the running job; None removes a variable."""
    started = []

    def run(*words, launcher=(), **environment):
        environment = {"PYTHONPATH": python.root, "PYTHONWARNINGS": "ignore", **environment}
        started.append(python.start(*launcher, "-m", "tests.engine.job", *words, **environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def forked_ranks(monkeypatch):
    """Forks ranks, which takes a moment, for tests of how a job ends; spawn starts an interpreter for each of them."""

    def spawn(function, **options):
        torch.multiprocessing.start_processes(partial(with_default_handlers, function), start_method="fork", **options)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)


def with_default_handlers(function, rank, *args):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(rank, *args)


def launch(end, main=job.main, imports=()):
    """The job, with this process as the parent."""
    engine.launch(main, job.make_cfg(end, imports), engine.argument_parser().parse_args(["--num-gpus", "2"]))


def torchrun(*words):
    return ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), *words)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def rank_lines(output):
    """The lines of the ranks without their threads."""
    return sorted(line.rpartition(",")[0] for line in output.splitlines() if line.startswith("rank"))


BOTH = ["rank 0 of 2, sum 1, local 0", "rank 1 of 2, sum 1, local 1"]


def test_two_jobs_on_one_machine_use_free_ports_and_share_the_cores_among_ranks(start):
    jobs = [start("well", "--num-gpus", "2", OMP_NUM_THREADS=None) for _ in range(2)]
    for process in jobs:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert rank_lines(output) == BOTH
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
        assert re.findall(r"(\d+) threads", output) == [str(threads)] * 2


def test_the_traceback_of_the_rank_that_failed_is_the_message(capfd, forked_ranks):
    with pytest.raises(LaunchError) as error:
        launch("fail:0")
    lines = str(error.value).splitlines()
    assert lines[:3] == ["rank 0 of 2 failed:", "", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: rank 0 broke"
    assert rank_lines(capfd.readouterr().out) == BOTH


def test_a_failure_on_one_machine_ends_all_machines(start):
    """Two machines with a process each."""
    words = ["fail:1", "--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--machine-rank"]
    machines = [start(*words, str(i)) for i in range(2)]
    ends = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1]
    assert [rank_lines(output) for output, _ in ends] == [[f"rank {i} of 2, sum 1, local 0"] for i in range(2)]
    message = ends[1][1][ends[1][1].index("error: ") :]
    assert message.startswith("error: rank 1 of 2 failed:\n\nTraceback (most recent call last):\n")
    assert message.rstrip().endswith("ValueError: rank 1 broke") and ends[1][1].count("Traceback") == 1
    assert "error: rank 0 of 2 failed:" in ends[0][1]  # since the connection broke


def test_a_user_error_arrives_as_itself_and_goes_before_an_exit_code(forked_ranks):
    with pytest.raises(ConfigError) as error:
        launch("refuse:1")
    assert error.value.problems == ["one thing", "another"]


def test_an_exit_with_a_text_is_a_failure(forked_ranks):
    with pytest.raises(LaunchError, match="^rank 1 of 2 failed:\n\nnothing to do$"):
        launch("give_up:1")


def test_the_exit_code_of_the_ranks_is_that_of_the_job_when_all_have_ended(capfd, forked_ranks):
    with pytest.raises(SystemExit) as end:
        launch("stop:1")
    assert end.value.code == 75
    assert rank_lines(capfd.readouterr().out) == BOTH


def test_a_rank_that_was_killed_is_named(forked_ranks):
    with pytest.raises(LaunchError, match="^rank 1 of 2 was killed by SIGKILL$"):
        launch("die:1")


def test_signals_reach_the_ranks_once_and_no_rank_outlives_the_parent(start, tmp_path):
    parent = start("stay", "--num-gpus", "2", TMPDIR=tmp_path)
    pids = [int(pid) for pid in found_in(parent, r"pid (\d+) waits", 2)]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        parent.send_signal(number)
        told = found_in(parent, r"rank (\d got \d+)", 2)
        assert sorted(told) == [f"{rank} got {int(number)}" for rank in range(2)]
    assert parent.poll() is None
    parent.kill()
    deadline = time.monotonic() + 120
    while any(map(job.runs, pids)):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)
    assert not list(tmp_path.glob("retina_plugin_*"))


def test_a_signal_that_the_ranks_do_not_handle_gives_the_exit_code_of_a_shell(start):
    parent = start("wait", "--num-gpus", "2")
    found_in(parent, "waits", 2)
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=120)
    assert parent.returncode == 128 + 2 and "error" not in errors


def test_a_signal_ends_a_job_that_waits_for_another_machine(start):
    parent = start("well", "--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}")
    while not children_of(parent.pid):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=120)
    assert parent.returncode == 128 + 2


def children_of(pid):
    """Ranks that a process has started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = file.read().split()
    return [child for child in children if b"spawn_main" in open(f"/proc/{child}/cmdline", "rb").read()]


def found_in(process, pattern, count):
    found = []
    while len(found) < count:
        line = process.readline()
        assert line, "the job has ended"
        found += re.findall(pattern, line)
    return found


def test_a_job_function_of_an_imported_file(tmp_path):
    """The ranks cannot import its module by name."""
    path = tmp_path / "my_project.py"
    path.write_text(
        "import pathlib\n"
        "from detectron2.utils import comm\n"
        "def main(cfg, args):\n"
        "    pathlib.Path(cfg.END, f'{comm.get_rank()} of {comm.get_world_size()}').touch()\n"
    )
    import_modules([str(path)])
    (module,) = (m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(path))
    launch(str(tmp_path), main=module.main, imports=[str(path)])
    assert {"0 of 2", "1 of 2"} < set(os.listdir(tmp_path))


@pytest.mark.parametrize("launcher", ["torchrun", "dist_url"])
def test_an_address_that_is_not_reached_is_an_error_in_a_line(launcher, monkeypatch, capfd):
    """On the second machine of two, whose first one does not exist; torch itself prints much about it."""
    monkeypatch.setattr(importlib.import_module("retina_plugin.engine.launch"), "TIMEOUT", timedelta(seconds=1))
    port, words = free_port(), []
    if launcher == "torchrun":
        ranks = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        address = f"127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT)"
    else:
        words = ["--num-machines", "2", "--machine-rank", "1", "--dist-url", f"tcp://127.0.0.1:{port}"]
        address = f"tcp://127.0.0.1:{port} (--dist-url)"
    with pytest.raises(LaunchError) as error:
        engine.launch(job.main, job.make_cfg("well"), engine.argument_parser().parse_args(words))
    assert str(error.value).startswith(f"rank 1 of 2 did not come together with the others at {address}: ")
    assert "\n" not in str(error.value) and "address of machine 0" in str(error.value)
    assert f"machine 1 of 2: connecting to {address.split(' (')[0]}" in capfd.readouterr().err


def test_torchrun(start):
    process = start("well", launcher=torchrun(), OMP_NUM_THREADS=None)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert rank_lines(output) == BOTH


def test_torchrun_shows_the_error_of_the_rank_that_failed(start, tmp_path):
    process = start("fail:1", launcher=torchrun("--log-dir", str(tmp_path), "--redirects", "2"))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "ValueError: rank 1 broke" in errors[errors.index("Root Cause") :]
    (written,) = tmp_path.glob("*/attempt_0/1/error.json")
    assert "ValueError: rank 1 broke" in json.loads(written.read_text())["message"]["extraInfo"]["py_callstack"]
