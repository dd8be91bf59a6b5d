"""Memory of allocations whose size is known, each in a process of its own."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import loss, memory, options
from benchmarks.memory import available_bytes, peak_of_case, shortage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured on Linux alone")
MB = 2**20
EXPECTED = {
    "one": lambda first, second: first,
    "together": lambda first, second: first + second,
    "in turn": max,
    "pieces": lambda first, second: first,  # and not less by what was freed before
    "beside what is there": lambda first, second: first,
    "in what is there": lambda first, second: 0,
}


@pytest.mark.parametrize("impl", EXPECTED)
def test_known_allocations(impl):
    megabytes = random.randint(40, 90), random.randint(40, 90)
    args = SimpleNamespace(threads=1, megabytes=megabytes)
    peak = peak_of_case("tests.benchmarks.allocations", args, 0, impl) / MB
    assert abs(peak - EXPECTED[impl](*megabytes)) < 3, f"{peak:.1f} MB of {megabytes}"


@pytest.fixture
def loss_args():
    return options.parse(loss, ["--quick", "--classes", "--batches", "--sizes", "320", "--threads", "1"])


def test_sides_of_the_loss(loss_args):
    """The lower bound allocates nothing; Detectron2's way at least a one-hot target of integers and one of floats."""
    index, case = len(loss.LOSSES), loss.cases(loss_args)[-1]
    anchors = 9 * sum(h * w for h, w in ((40, 68), (20, 34), (10, 17), (5, 9), (3, 5)))
    classes = case.classes
    detectron2 = peak_of_case("benchmarks.loss", loss_args, index, loss.DETECTRON2)
    assert detectron2 > anchors * (8 * (classes + 1) + 4 * classes)
    assert abs(peak_of_case("benchmarks.loss", loss_args, index, loss.LOWER_BOUND)) < 2 * MB
    assert case.inherent_bytes(loss.DETECTRON2) == anchors * classes * 4


def test_a_process_that_fails_is_no_measurement(loss_args):
    with pytest.raises(RuntimeError, match="'nobody'"):
        peak_of_case("benchmarks.loss", loss_args, 0, "nobody")


def test_available_memory_is_that_of_the_machine():
    assert 10 * MB < available_bytes(torch.device("cpu")) < 2**50


def test_shortage(monkeypatch):
    """At 1 GB of inputs an implementation took 3 GB more; at 2 GB, it needs 2 + 6 of 0.9 times what is available."""
    device = torch.device("cpu")
    known = (10**9, 3 * 10**9)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8.8e9)
    assert shortage(2 * 10**9, known, device) == "needs about 8.0 GB, 8.8 GB are available"
    assert shortage(10**9, known, device) is None, "it ran"
    assert shortage(2 * 10**9, None, device) is None, "nobody knows"
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8.9e9)
    assert shortage(2 * 10**9, known, device) is None
