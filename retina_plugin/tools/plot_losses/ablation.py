"""Reads the results of projects/LossAblation."""

import json
from pathlib import Path
from typing import Any

from retina_plugin.core.plain import is_number

Row = dict[str, Any]

_TOO_LARGE = 1e9


def read_ablation(path: Path) -> tuple[list[Row], list[Row]]:
    """Read the AP of the settings of FL* and of focal loss.

    Args:
        path: JSON, as projects/LossAblation writes it: ``{"rows": [{"loss": "focal_star", "gamma": 2.0, "beta": 1.0,
            "ap": [33.8, null]}, ...]}``, with AP in percent for each seed, null for a run that diverged.

    Returns:
        The rows with the loss ``focal_star`` and those with ``focal``, for :func:`.figures.focal_star_settings_figure`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not of that form, has no row of FL*, or no AP of focal loss.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No ablation results {path}. projects/LossAblation writes them.")
    try:
        results = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    rows = results.get("rows") if isinstance(results, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "loss" in row for row in rows):
        raise ValueError(f"{path} is not what projects/LossAblation writes: an object with rows, each with a loss.")
    focal_star, focal = ([row for row in rows if row["loss"] == loss] for loss in ("focal_star", "focal"))
    for row in focal_star + focal:
        aps = row.get("ap")
        if not isinstance(aps, list) or not all(ap is None or (is_number(ap) and 0 <= ap <= 100) for ap in aps):
            raise ValueError(f"{path}: ap must be a list, a percentage or null for each seed, in the row {row}.")
        settings = row.get("gamma"), row.get("beta")
        if row["loss"] == "focal_star" and not all(is_number(value, _TOO_LARGE) for value in settings):
            raise ValueError(f"{path}: gamma and beta must be numbers, in the row {row}.")
    if not focal_star:
        raise ValueError(f"{path} has no row with the loss focal_star: there is nothing for figure 7 to show.")
    if all(ap is None for row in focal for ap in row["ap"]):
        raise ValueError(f"{path} has no AP of the loss focal, which figure 7 compares the others with.")
    return focal_star, focal
