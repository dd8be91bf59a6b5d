"""Score thresholds for all classes and for single ones."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.plain import is_number
from retina_plugin.core.text import did_you_mean, one_line

# A number for all classes, or numbers by class name; None is the name of all other classes.
ScoreThreshold: TypeAlias = float | Mapping[str | None, float] | None


def lowest_threshold(threshold: ScoreThreshold) -> float | None:
    """Return the lowest of the thresholds; None if there are none.

    Raises:
        ConfigError: a threshold is no number from 0 to 1.
    """
    values = _by_name(threshold)
    for name, value in values.items():
        if not is_number(value) or not 0 <= value <= 1:
            of = "" if name is None else f" of class '{one_line(name)}'"
            raise ConfigError([f"the score threshold{of} is {value}, but scores go from 0 to 1"])
    return min(values.values(), default=None)


def bounds_of_classes(threshold: ScoreThreshold, class_names: Sequence[str], default: float) -> np.ndarray:
    """Return the lowest score of a detection of each class, as float32 (K,).

    Args:
        threshold: detections of a class have at least its score.
        class_names: K names.
        default: of classes without a threshold, whose detections have a **higher** score, as in a RetinaNet.

    Raises:
        ConfigError: there is no class of a name.
    """
    by_name = _by_name(threshold)
    if unknown := [name for name in by_name if name is not None and name not in class_names]:
        name = unknown[0]
        raise ConfigError([
            f"there is no class '{one_line(name)}' to set a score threshold of.{did_you_mean(str(name), class_names)} "
            f"The model has {len(class_names)}: {', '.join(map(one_line, class_names[:10]))}"
            f"{', ...' if len(class_names) > 10 else ''}"
        ])  # fmt: skip
    above_default = np.nextafter(np.float32(default), np.float32(np.inf))
    others = by_name.get(None)
    bound = above_default if others is None else np.float32(others)
    return np.array([np.float32(by_name[name]) if name in by_name else bound for name in class_names], np.float32)


def _by_name(threshold: ScoreThreshold) -> dict[str | None, float]:
    if threshold is None:
        return {}
    return dict(threshold) if isinstance(threshold, Mapping) else {None: threshold}
