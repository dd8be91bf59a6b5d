"""Comparisons whose largest deviations are printed at the end of a run."""

from collections import defaultdict

import torch


class Deviations:
    """Largest difference over largest magnitude, of every quantity that was compared."""

    def __init__(self):
        self._largest = defaultdict(float)

    def check(self, quantity, ours, expected, tolerance):
        ours, expected = torch.as_tensor(ours).double(), torch.as_tensor(expected).double()
        assert ours.shape == expected.shape, quantity
        assert torch.isfinite(ours).all() and torch.isfinite(expected).all(), quantity
        if ours.numel():
            deviation = ((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
            self._largest[quantity] = max(self._largest[quantity], deviation)
            assert deviation <= tolerance, f"{quantity}: {deviation:.2e} > {tolerance:.0e}"

    def report(self, terminalreporter, title):
        if self._largest:
            terminalreporter.section(title)
            for quantity, deviation in sorted(self._largest.items()):
                terminalreporter.write_line(f"{quantity:60s} {deviation:.2e}")
