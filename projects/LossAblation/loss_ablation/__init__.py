"""Compares the losses of the paper on one data set. Importing this package registers the data set."""

import retina_plugin  # noqa: F401  isort: skip  first: makes Detectron2 importable

from detectron2.config import CfgNode

from loss_ablation import data  # noqa: F401


def add_config(cfg: CfgNode) -> None:
    """Add no key: the project has data sets only, which are registered when this package is imported."""
