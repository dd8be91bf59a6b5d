"""The meeting point of machines: who comes, who does not, and for which job."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
from torch import distributed as dist

from retina_plugin.engine.meeting import LaunchError, Meeting


@pytest.fixture
def url():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def meet(url, jobs, what="machine", timeout=30):
    """All members at once: a Meeting or LaunchError of each."""

    def come(index):
        try:
            return Meeting(what, index, len(jobs), jobs[index], url, timeout)
        except LaunchError as error:
            return error

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(come, range(len(jobs))))


def test_all_come_and_one_that_fails_tells_the_others(url):
    meetings = meet(url, ["job"] * 3)
    told = SimpleQueue()
    with meetings[1].watch(told.put), meetings[2].watch(told.put):
        teller = threading.Thread(target=meetings[0].tell_failure, args=("rank 1 broke",))
        teller.start()  # and waits for the others to leave
        assert [told.get(timeout=60) for _ in range(2)] == ["machine 0 failed: rank 1 broke"] * 2
        meetings[1].leave()
        meetings[2].leave()
        teller.join(timeout=50)
        assert not teller.is_alive()


@pytest.mark.parametrize(
    ("what", "advice"), [("machine", "--dist-url is the same everywhere"), ("rank", "MASTER_ADDR and MASTER_PORT")]
)
@pytest.mark.parametrize("present", [0, 2])
def test_one_that_never_comes(url, what, advice, present):
    with pytest.raises(LaunchError) as error:
        Meeting(what, present, 3, "job", url, 0.5)
    waited = {
        0: f"waited 0.5 s at {url} for 3 {what}s: 1 came. Missing: {what} 1, 2. Check that ",
        2: f"waited 0.5 s for {what} 0, and nobody answers at {url} ",
    }
    message = str(error.value)
    assert message.startswith(waited[present]) and advice in message and "--dist-timeout SECONDS" in message


def test_a_host_that_nobody_knows():
    with pytest.raises(LaunchError, match="nobody answers at tcp://machine.invalid:29500"):
        Meeting("machine", 1, 2, "job", "tcp://machine.invalid:29500", 0.2)


def test_members_that_were_started_for_different_jobs(url):
    first, second = meet(url, ["--num-gpus 2", "--num-gpus 3"])
    assert str(first).startswith("machine 1 was started with --num-gpus 3, this one (machine 0) with --num-gpus 2")
    assert str(second).startswith("machine 0 was started with --num-gpus 2, this one (machine 1) with --num-gpus 3")


def test_two_with_the_same_number(url):
    first, _, _ = meet(url, ["job"] * 3)
    with pytest.raises(LaunchError, match="two came to .* as machine 2. Each needs a number of its own, from 0 to 2"):
        Meeting("machine", 2, 3, "job", url, 1)
    assert first.url == url  # and keeps the store open


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"cannot open port {port} of this machine"):
            Meeting("machine", 0, 1, "job", f"tcp://127.0.0.1:{port}", 1)


def test_one_machine_takes_a_port_that_is_free_and_its_workers_meet_there():
    environment = dict(os.environ)
    meetings = [Meeting("machine", 0, 1, "job", "tcp://127.0.0.1:0", 1) for _ in range(2)]
    assert meetings[0].url != meetings[1].url
    with meetings[1].for_workers():
        for number in (1, 2):
            rendezvous = dist.rendezvous(meetings[1].url, 0, 1)  # as rank 0, which would open it
            assert next(rendezvous)[0].add("workers", 1) == number
    assert dict(os.environ) == environment
