"""Assigners: ground-truth boxes to anchors (section 4, "Anchors")."""

from collections.abc import Sequence
from typing import Protocol

from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from retina_plugin.config.registries import ASSIGNER_REGISTRY
from retina_plugin.losses.targets import Targets
from retina_plugin.modeling.assigners.max_iou import AnchorMatcher
from retina_plugin.modeling.predictions import RawPredictions

__all__ = ["AnchorMatcher", "Assigner", "build_assigner"]


class Assigner(Protocol):
    """Computes the targets of all anchors of a batch.

    ``ASSIGNER_REGISTRY`` has functions ``f(cfg) -> Assigner``; ``MODEL.RETINANET.ASSIGNER`` names one. Only an assigner
    whose attribute ``needs_predictions`` is True gets predictions.
    """

    def __call__(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        predictions: RawPredictions | None = None,
        *,
        num_cell_anchors: Sequence[int] | None = None,
    ) -> Targets:
        """
        Args:
            anchors: the anchors of L levels, Hl * Wl * A each in the order (row, column, A); R in all.
            gt_instances: of N images, with ``gt_boxes`` and ``gt_classes``.
            predictions: logits, deltas and extras of these anchors; None unless ``needs_predictions``.
            num_cell_anchors: A of each level; None if the anchor generator does not tell.

        Returns:
            Targets of N images and R anchors, on the device of the anchors.
        """
        ...


def build_assigner(cfg: CfgNode) -> Assigner:
    """Build the assigner that ``MODEL.RETINANET.ASSIGNER`` names."""
    return ASSIGNER_REGISTRY.get(cfg.MODEL.RETINANET.ASSIGNER)(cfg)
