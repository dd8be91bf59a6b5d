"""Taking turns, and ratios round by round."""

import pytest
import torch

from benchmarks.case import Step
from benchmarks.pairing import clock_of, ratio, take_turns


def steps_that_log(log, implementations):
    return {
        impl: Step(
            run=lambda impl=impl: log.append(impl),
            prepare=lambda impl=impl: log.append(f"before {impl}"),
        )
        for impl in implementations
    }


def scripted(seconds):
    """A clock that runs what it is given and says that it took the next of these times."""
    remaining = iter(seconds)

    def clock(run):
        run()
        return next(remaining)

    return clock


def test_sides_alternate_and_each_is_prepared_before_its_run():
    log = []
    times = take_turns(steps_that_log(log, "ABC"), rounds=4, warmup=2, seconds=60, clock=clock_of(torch.device("cpu")))
    assert log == ["before A", "A", "before B", "B", "before C", "C"] * 6
    assert {impl: len(seconds) for impl, seconds in times.items()} == {"A": 4, "B": 4, "C": 4}


def test_warm_up_does_not_count():
    clock = scripted([100, 100, 1, 2, 3, 4])
    times = take_turns(steps_that_log([], "AB"), rounds=2, warmup=1, seconds=60, clock=clock)
    assert times == {"A": [1, 3], "B": [2, 4]}


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 3), (6, 4), (8, 5), (1000, 10)])
def test_long_cases_end_after_their_third_round(seconds, rounds):
    """Of two implementations of a second each, no round begins after the third when more than ``seconds`` are over."""
    times = take_turns(steps_that_log([], "AB"), rounds=10, warmup=1, seconds=seconds, clock=scripted([1.0] * 22))
    assert len(times["A"]) == len(times["B"]) == rounds


def test_fewer_than_three_rounds_where_they_are_asked_for():
    times = take_turns(steps_that_log([], "A"), rounds=1, warmup=0, seconds=0, clock=scripted([1.0]))
    assert times == {"A": [1.0]}


def test_time_of_prepare_is_not_counted():
    log = []

    def clock(run):
        log.append("start")
        run()
        log.append("stop")
        return 1.0

    take_turns(steps_that_log(log, "AB"), rounds=1, warmup=0, seconds=60, clock=clock)
    assert log == ["before A", "start", "A", "stop", "before B", "start", "B", "stop"]


def test_ratio_is_the_median_of_the_rounds():
    """A round in which everything takes ten times as long changes nothing; it would change a ratio of means."""
    base = torch.rand(5, dtype=torch.float64) + 1
    share = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)[torch.randperm(5)]
    slow = torch.tensor([1, 1, 10, 1, 1], dtype=torch.float64)
    assert ratio((share * base * slow).tolist(), (base * slow).tolist()) == pytest.approx(0.4)


def test_no_ratio_without_both():
    assert ratio([], [1.0]) is None
    assert ratio([1.0], []) is None
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])
