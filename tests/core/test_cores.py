"""Cores that control groups grant, in files as the kernel shows them."""

import os

import pytest

from retina_plugin.core.cores import num_cores, oversubscription

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    "files, granted",
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        # the user's slice limits, not the process's own group
        ({"proc/self/cgroup": "0::/user/app", "sys/fs/cgroup/user/cpu.max": "90000 100000"}, 1),
        # in a container, the group of the host's view is not there
        ({"proc/self/cgroup": "4:cpu,cpuacct:/docker/1", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"proc/self/cgroup": "3:cpuset:/\n0::/", "sys/fs/cgroup/cpu.max": "rubbish"}, None),
    ],
)  # fmt: skip
def test_quotas(tmp_path, files, granted):
    write(tmp_path, files)
    assert num_cores(tmp_path) == (ALL if granted is None else min(ALL, granted))
    assert 1 <= num_cores() <= ALL


def test_more_threads_than_cores_is_a_sentence():
    assert oversubscription(4, 2, 8) is None and oversubscription(1, 1, 1) is None
    assert oversubscription(4, 2, 7) == (
        "The CPU is oversubscribed, which is slow: 4 processes with 2 threads on 7 cores: set OMP_NUM_THREADS=1."
    )
    assert "1 process with 64 threads on 8 cores: set OMP_NUM_THREADS=8." in oversubscription(1, 64, 8)
    assert "4 processes with 1 threads on 2 cores: start fewer processes." in oversubscription(4, 1, 2)
    assert oversubscription(1, 2, 2, load=1.2) is None
    assert "other processes have a load of 5.2 a core" in oversubscription(1, 2, 2, load=5.21)
