"""The metric that chooses the best checkpoint and stops training early: its latest value, and which value is better."""

import math

from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean


def improves(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Tell whether a value is better than the best so far. Values that are not finite never are.

    Args:
        value: the new value.
        best: the best value so far; None if there is none.
        mode: "max" if high values are good, "min" if low ones are.
        min_delta: by how much more than this a better value differs, at least 0.
    """
    if not math.isfinite(value):
        return False
    return best is None or (value - best if mode == "max" else best - value) > min_delta


def latest_metric(storage: EventStorage, name: str) -> float:
    """Return a metric of the evaluation that was just done. All ranks call this; the main rank has the results.

    Args:
        storage: of the training.
        name: such as "bbox/AP".

    Raises:
        ConfigError: no evaluation gives this metric.
    """
    fresh = None
    if comm.is_main_process():
        # Results of an evaluation have a task and a "/" in their name; what a step logs has none.
        latest = storage.latest().items()
        fresh = {key: value for key, (value, iteration) in latest if iteration == storage.iter and "/" in key}
    fresh = comm.all_gather(fresh)[0]
    if name not in fresh:
        known = ", ".join(key for key in fresh if "/AP-" not in key) or "none"
        raise ConfigError([
            f"TEST.BEST_CHECKPOINT.METRIC is '{name}', which no evaluation gives.{did_you_mean(name, fresh)} "
            f"There are: {known}"
        ])  # fmt: skip
    return fresh[name]
