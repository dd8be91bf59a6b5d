"""The CPU cores that a process may use, and whether its threads are more than those."""

import math
import os
from pathlib import Path

_BUSY = 1.25  # the start of the job itself is part of the load


def num_cores(root: str | os.PathLike = "/") -> int:
    """CPU cores that this process may use: those it may run on, and no more than its control groups grant.

    Args:
        root: where the system's ``proc`` and ``sys`` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in _quotas(Path(root)) if quota > 0]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def load_per_core() -> float:
    """Processes that ran or waited for a core in the last minute, per core of the machine; 0 if unknown."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def oversubscription(processes: int, threads: int, cores: int, load: float = 0.0) -> str | None:
    """Return a sentence if there are more threads than cores.

    Args:
        processes: of this job on this machine.
        threads: of each of them.
        cores: see :func:`num_cores`.
        load: see :func:`load_per_core`, before the job has begun to compute.
    """
    if processes * threads > cores:
        remedy = f"set OMP_NUM_THREADS={max(1, cores // processes)}" if threads > 1 else "start fewer processes"
        what = f"{processes} process{'es' * (processes > 1)} with {threads} threads on {cores} core{'s' * (cores > 1)}"
    elif load > _BUSY:
        what, remedy = f"other processes have a load of {load:.1f} a core", "wait for their end, or stop them"
    else:
        return None
    return f"The CPU is oversubscribed, which is slow: {what}: {remedy}."


def _quotas(root: Path) -> list[float]:
    """Cores that the control groups of this process grant, in both versions of the kernel's interface."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.strip("/")
        for folder in [group, *group.parents]:  # each group above limits, too; in a container, only the mount is seen
            if folder == mount.parent:
                break
            quotas += [_quota_v1(folder)] if controllers else [_quota_v2(folder)]
    return quotas


def _quota_v2(folder: Path) -> float:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else 0


def _quota_v1(folder: Path) -> float:
    quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
