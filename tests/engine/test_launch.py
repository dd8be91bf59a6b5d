"""Processes are started and end as one: exit codes, messages, signals, nobody left. They really run (job.py)."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from retina_plugin import ConfigError, engine
from retina_plugin.core.errors import LaunchError
from retina_plugin.engine import worker

from . import job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def start(request):
    """start(*words, launcher) -> the running job."""
    started = []

    def run(*words, launcher=()):
        root = str(request.config.rootpath)
        started.append(
            subprocess.Popen(
                [sys.executable, *launcher, "-m", "tests.engine.job", *words],
                cwd=root,
                env={**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def launch(end, *words):
    """The job, with this process as the parent."""
    engine.launch(job.main, job.make_cfg(end), engine.argument_parser().parse_args(["--num-gpus", "2", *words]))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_one_rank_that_fails_ends_all_machines_and_has_the_last_word(start):
    """Two machines with a process each."""
    url = f"tcp://127.0.0.1:{free_port()}"
    words = ["fail", "--num-machines", "2", "--dist-url", url, "--dist-timeout", "120", "--machine-rank"]
    machines = [start(*words, str(i)) for i in range(2)]
    ends = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1]
    assert [output.strip() for output, _ in ends] == [f"rank {i} of 2, sum 1, local 0" for i in range(2)]
    errors = ends[1][1]
    message = errors[errors.index("error: ") :]
    assert message.startswith("error: rank 1 of 2 failed:\n\nTraceback (most recent call last):\n")
    assert message.rstrip().endswith("ValueError: rank 1 broke") and errors.count("Traceback") == 1
    assert "error: " in ends[0][1]  # what machine 1 told, or the connection that broke, whichever was first


@pytest.mark.slow
def test_an_exit_code_of_the_processes_is_that_of_the_job_when_all_have_ended(capfd):
    with pytest.raises(SystemExit) as end:
        launch("stop")
    assert end.value.code == 75
    lines = sorted(line for line in capfd.readouterr().out.splitlines() if line.startswith("rank"))
    assert lines == ["rank 0 of 2, sum 1, local 0", "rank 1 of 2, sum 1, local 1"]


@pytest.mark.slow
def test_a_process_that_was_killed_is_named():
    with pytest.raises(LaunchError, match="^rank 1 of 2 was killed by SIGKILL$"):
        launch("die")


@pytest.mark.slow
def test_signals_reach_the_processes_once_and_nobody_outlives_the_parent(start):
    parent = start("stay", "--num-gpus", "2")
    pids = [int(pid) for pid in found_in(parent.stdout, r"pid (\d+) waits", 2)]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        parent.send_signal(number)
        told = found_in(parent.stdout, r"rank (\d got \d+)", 2)
        assert sorted(told) == [f"{rank} got {int(number)}" for rank in range(2)]
    assert parent.poll() is None
    parent.kill()
    deadline = time.monotonic() + 120
    while any(map(job.runs, pids)):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def found_in(stream, pattern, count):
    found = []
    while len(found) < count:
        line = stream.readline()
        assert line, "the job has ended"
        found += re.findall(pattern, line)
    return found


@pytest.mark.slow
def test_under_torchrun(start):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    process = start("well", launcher=launcher)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert sorted(output.splitlines()) == ["rank 0 of 2, sum 1, local 0", "rank 1 of 2, sum 1, local 1"]


def test_what_the_user_reads_is_of_the_first_to_fail(tmp_path):
    worker._write(worker.Report(3.0, 0, traceback="RuntimeError: Connection closed by peer"), tmp_path)
    worker._write(worker.Report(2.0, 1, mistake=ConfigError(["one thing", "another"])), tmp_path)
    worker._write(worker.Report(1.0, 2, exit_code=75), tmp_path)
    stopped, first, last = worker.read_reports(tmp_path)
    assert not stopped.failed and stopped.exit_code == 75
    assert isinstance(first.error(3), ConfigError) and first.error(3).problems == ["one thing", "another"]
    assert str(last.error(3)) == "rank 0 of 3 failed:\n\nRuntimeError: Connection closed by peer"
