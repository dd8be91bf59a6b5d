"""Sides that take turns in one process, so that whatever slows the machine down meets all of them."""

import statistics
import time

import torch

# Fewer have no median worth the name.
MIN_ROUNDS = 3


def take_turns(steps, *, rounds, warmup, seconds, clock):
    """Run all implementations once a round, always in the same order: A B C, A B C, ...

    Args:
        steps: dict of implementation -> ``Step``.
        rounds: rounds that count.
        warmup: rounds before them, which do not.
        seconds: after :data:`MIN_ROUNDS` rounds, no other begins when the counted ones took this long.
        clock: function that runs a function and returns the seconds that it took; see :func:`clock_of`.

    Returns:
        dict of implementation -> list of seconds, one a round.
    """
    times = {impl: [] for impl in steps}
    for round_ in range(-warmup, rounds):
        if round_ >= MIN_ROUNDS and sum(map(sum, times.values())) > seconds:
            break
        for impl, step in steps.items():
            step.prepare()
            elapsed = clock(step.run)
            if round_ >= 0:
                times[impl].append(elapsed)
    return times


def clock_of(device):
    """The clock of a ``torch.device``: events of the GPU's own where there is one."""
    return _cuda_seconds if device.type == "cuda" else _seconds


def ratio(times, base):
    """Median of the ratios of each round, or None where one of the two did not run.

    Args:
        times, base: seconds of two implementations, in the order of the rounds.
    """
    if not times or not base:
        return None
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def _seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
