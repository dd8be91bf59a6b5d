"""Warns at the start of a training whose anchors cover its boxes poorly."""

import logging
import os
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from retina_plugin.config.checks import builds_focal_retinanet
from retina_plugin.core.errors import UserError
from retina_plugin.data.loader import ResumableTrainLoader
from retina_plugin.data.training_boxes import map_boxes, spread, stack
from retina_plugin.modeling.anchor_coverage import MAX_MISSED, AnchorCoverage

_IMAGES = 100
_MIN_BOXES = 20  # fewer say nothing about a data set


def warn_of_poor_anchors(cfg: CfgNode, model: nn.Module, loader: Any) -> None:
    """Log a warning if more than ``MAX_MISSED`` of the boxes of some training images have no anchor of a positive IoU.

    Args:
        cfg: the configuration, for Detectron2's ``DatasetMapper``.
        model: the model that is trained; only those that read RetinaNet's keys are looked at.
        loader: of the training; only a ``ResumableTrainLoader`` tells its images.
    """
    if not isinstance(loader, ResumableTrainLoader) or not builds_focal_retinanet(cfg):
        return
    images = [loader.images[i] for i in spread(loader.images, _IMAGES)]
    sized = [image for image in images if {"height", "width"} <= image.keys()]
    try:
        boxes, sizes = stack(list(map_boxes(cfg, sized)))
    except UserError:  # the training meets it, and says it
        return
    if len(boxes) < _MIN_BOXES:
        return
    coverage = AnchorCoverage(cfg, model.backbone)
    missed = float((coverage.best(boxes, sizes)[0] < coverage.threshold).mean())
    if missed > MAX_MISSED:
        logging.getLogger(__name__).warning(
            "%.0f %% of the boxes in %d training images have no anchor with an IoU of %g or more: they teach little. "
            "`python -m retina_plugin anchors check --config-file %s` says which ones, `anchors fit` proposes others.",
            *(100 * missed, len(sized), coverage.threshold, os.path.join(cfg.OUTPUT_DIR, "config.yaml")),
        )
