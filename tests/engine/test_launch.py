"""Processes are started, meet, and end as one: exit codes, messages, signals, nobody left. They really run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def start(request):
    """start(words, launcher) -> the running tests/engine/job.py of one machine."""
    started = []

    def run(words, launcher=(sys.executable,), **environment):
        clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        root = str(request.config.rootpath)
        started.append(
            subprocess.Popen(
                [*launcher, "-m", "tests.engine.job", *words.split()],
                cwd=root,
                env={**clean, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def finish(start):
    """finish(words, ...) -> exit code, output, errors."""

    def run(*args, **kwargs):
        process = start(*args, **kwargs)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    return run


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_processes_form_a_group_without_a_gpu(finish):
    code, output, errors = finish("well --num-gpus 2")
    assert code == 0, errors
    assert sorted(output.splitlines()) == ["rank 0 of 2, sum 1, local 0", "rank 1 of 2, sum 1, local 1"]


def test_the_last_words_are_the_traceback_of_the_rank_that_failed(finish):
    code, output, errors = finish("fail --num-gpus 2")
    assert code == 1
    message = errors[errors.index("error: ") :]
    assert message.startswith("error: rank 1 of 2 failed:\n\nTraceback (most recent call last):\n")
    assert message.rstrip().endswith("ValueError: rank 1 broke")
    assert errors.count("Traceback") == 1


def test_a_users_mistake_found_by_a_process_is_an_error_in_lines(finish):
    code, output, errors = finish("refuse --num-gpus 2")
    assert code == 1 and "Traceback" not in errors
    assert errors.endswith("error: one thing\nerror: another thing\n") and errors.count("one thing") == 1


def test_an_exit_code_of_the_processes_is_that_of_the_job(finish):
    assert finish("stop --num-gpus 2")[0] == 75


def test_a_process_that_was_killed_is_named(finish):
    code, output, errors = finish("die --num-gpus 2")
    assert code == 1 and errors.endswith("error: rank 1 of 2 was killed by SIGKILL\n") and "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_reaches_the_processes_once(start, number):
    process = start("wait --num-gpus 2")
    pids = pids_that_wait(process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert sorted(re.findall(r"rank (\d) got (\d+)", output)) == [("0", str(int(number))), ("1", str(int(number)))]
    assert not any(map(runs, pids))


def test_nobody_outlives_a_parent_that_was_killed(start):
    process = start("stay --num-gpus 2")
    pids = pids_that_wait(process)
    process.kill()
    deadline = time.monotonic() + 60
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def pids_that_wait(process, count=2):
    pids = []
    while len(pids) < count:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        pids += [int(pid) for pid in re.findall(r"pid (\d+) waits", line)]
    return pids


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_machines_meet_and_one_that_fails_ends_the_others(start):
    job = f"fail --num-machines 2 --dist-url tcp://127.0.0.1:{free_port()} --dist-timeout 60 --machine-rank "
    machines = [start(job + str(i)) for i in range(2)]
    ends = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1]
    assert [output.strip() for output, _ in ends] == ["rank 0 of 2, sum 1, local 0", "rank 1 of 2, sum 1, local 0"]
    assert ends[1][1].rstrip().endswith("ValueError: rank 1 broke") and "rank 1 of 2 failed" in ends[1][1]
    assert "error: " in ends[0][1]


@pytest.mark.parametrize("present", [0, 1])
def test_a_machine_that_never_comes(finish, present):
    url = f"tcp://127.0.0.1:{free_port()}"
    job = f"well --num-gpus 2 --num-machines 2 --machine-rank {present} --dist-url {url} --dist-timeout 1"
    code, output, errors = finish(job)
    assert code == 1 and output == "" and "Traceback" not in errors
    (line,) = errors.splitlines()
    waited = {
        0: f"error: waited 1 s at {url} for 2 machines: 1 came. Missing: machine 1. Check ",
        1: f"error: waited 1 s for machine 0, and nobody answers at {url} ",
    }
    assert line.startswith(waited[present]) and "--dist-timeout SECONDS" in line


def test_machines_that_were_started_for_different_jobs(start):
    job = f"well --num-machines 2 --dist-url tcp://127.0.0.1:{free_port()} --dist-timeout 60 --machine-rank "
    machines = [start(job + "0 --num-gpus 2"), start(job + "1 --num-gpus 3")]
    errors = [machine.communicate(timeout=120)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1]
    assert "machine 1 was started with --num-machines 2 --num-gpus 3" in errors[0]


def test_a_port_that_is_taken(finish):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output, errors = finish(f"well --num-gpus 2 --dist-url tcp://127.0.0.1:{port}")
    assert code == 1 and f"error: cannot open port {port} of this machine" in errors and "Traceback" not in errors


def test_under_torchrun(finish):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")
    code, output, errors = finish("well", launcher=(*launcher, str(free_port())))
    assert code == 0, errors
    assert sorted(output.splitlines()) == ["rank 0 of 2, sum 1, local 0", "rank 1 of 2, sum 1, local 1"]


def test_under_a_launcher_that_only_sets_variables(start):
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start("well", **common, RANK=str(i), LOCAL_RANK=str(i)) for i in range(2)]
    ends = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], ends
    assert [output.strip() for output, _ in ends] == ["rank 0 of 2, sum 1, local 0", "rank 1 of 2, sum 1, local 1"]
