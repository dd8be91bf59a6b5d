"""Data loader workers outlive signals to their whole group, and end with their training process."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader

from retina_plugin.core.errors import MachineError
from retina_plugin.core.failures import explain_failures
from retina_plugin.data.workers import ignore_signals

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sigwaitinfo, /proc")


class Pids:
    """The process that reads item i."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return os.getpid()


def start():
    return iter(DataLoader(Pids(), batch_size=None, num_workers=2, prefetch_factor=1, worker_init_fn=ignore_signals))


def test_signals_of_others_are_ignored_and_one_of_the_parent_ends_the_worker():
    loader = start()
    pids = {next(loader) for _ in range(4)}
    assert len(pids) == 2 and os.getpid() not in pids
    for _ in range(2):  # Ctrl-C or a scheduler's signal, and again
        for name in ("-INT", "-TERM"):
            subprocess.run(["kill", name, *map(str, pids)], check=True)
    assert {next(loader) for _ in range(40)} == pids
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while any(map(runs, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_death_of_a_worker_is_an_error_with_advice():
    loader = start()
    pid = next(loader)
    with pytest.raises(MachineError) as error, explain_failures():
        os.kill(pid, signal.SIGKILL)
        for _ in loader:
            pass
    how = rf"(pid {pid} is killed by signal: Killed|pid\(s\) {pid} exited unexpectedly)"  # torch notices it in two ways
    assert re.match(rf"a data loader worker died: {how}. Memory has probably run out: ", str(error.value))
    assert "lower DATALOADER.NUM_WORKERS" in str(error.value) and "\n" not in str(error.value)


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
