"""Largest deviations of the losses from their closed forms, printed at the end of a run."""

import pytest
import torch

from ..deviations import Deviations

_DEVIATIONS = Deviations()


def pytest_terminal_summary(terminalreporter):
    # max |difference| / max |closed form|; a value is the sum over anchors and classes
    _DEVIATIONS.report(terminalreporter, "largest deviations of the losses from float64 closed forms")


@pytest.fixture
def assert_close():
    """assert_close(quantity, ours, closed form, tolerance): largest difference over largest magnitude; recorded."""

    def check(quantity, ours, expected, tolerance):
        assert torch.as_tensor(expected).abs().max() > 1e-12, f"{quantity}: nothing to compare with"
        _DEVIATIONS.check(quantity, ours, expected, tolerance)

    return check
