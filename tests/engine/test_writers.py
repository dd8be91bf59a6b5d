"""The line that training prints."""

import logging

import numpy as np
from detectron2.utils.events import EventStorage

from retina_plugin.engine.writers import WINDOW, ProgressPrinter


def printed(caplog, names, count=WINDOW + 1):
    """The line after ``count`` iterations with random values; and the values by name."""
    values = {name: np.random.rand(count) for name in ("total_loss", *names)}
    with EventStorage() as storage, caplog.at_level(logging.INFO, logger="detectron2.utils.events"):
        for i in range(count):
            storage.step() if i else None
            storage.put_scalars(**{name: series[i] for name, series in values.items()})
        ProgressPrinter(max_iter=100).write()
    return caplog.messages[-1], values


def test_scalars_marked_as_metrics_are_printed_as_losses_are(caplog):
    """Medians over the last 20 iterations, once each, as in Detectron2's main branch."""
    line, values = printed(
        caplog, ["[metric]bn_stat", "[metric]head/loss_scale", "[metric]loss_ratio", "bn_stat", "bbox/AP"]
    )
    for name in ("total_loss", "[metric]bn_stat", "[metric]head/loss_scale", "[metric]loss_ratio"):
        assert line.count(f"{name}: ") == 1
        assert f"  {name}: {np.median(values[name][1:]):.4g}" in line
    assert " bn_stat" not in line and "AP" not in line
