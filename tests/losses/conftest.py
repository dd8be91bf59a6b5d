"""Largest deviations of the losses from their closed forms, printed at the end of a run."""

from collections import defaultdict

import pytest
import torch

_DEVIATIONS = defaultdict(float)


def pytest_terminal_summary(terminalreporter):
    if _DEVIATIONS:
        terminalreporter.section("largest deviations of the losses from float64 closed forms")
        terminalreporter.write_line("max |difference| / max |closed form|; a value is the sum over anchors and classes")
        for quantity, deviation in sorted(_DEVIATIONS.items()):
            terminalreporter.write_line(f"{quantity:60s} {deviation:.2e}")


@pytest.fixture
def assert_close():
    """assert_close(quantity, ours, closed form, tolerance): largest difference over largest magnitude; recorded."""

    def check(quantity, ours, expected, tolerance):
        ours, expected = torch.as_tensor(ours).double(), torch.as_tensor(expected).double()
        assert ours.shape == expected.shape, quantity
        assert torch.isfinite(ours).all() and torch.isfinite(expected).all(), quantity
        assert expected.abs().max() > 0, f"{quantity}: nothing to compare with"
        deviation = ((ours - expected).abs().max() / expected.abs().max()).item()
        _DEVIATIONS[quantity] = max(_DEVIATIONS[quantity], deviation)
        assert deviation <= tolerance, f"{quantity}: {deviation:.2e} > {tolerance:.0e}"

    return check
