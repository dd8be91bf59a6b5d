"""Assigns ground-truth boxes to anchors by IoU (section 4, "Anchors").

N images, R anchors in all, K classes, G boxes of an image.
"""

from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor

from retina_plugin.config.registries import ASSIGNER_REGISTRY
from retina_plugin.losses.targets import Targets
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid, iou_of_overlaps, overlap
from retina_plugin.modeling.predictions import RawPredictions

_LAST_INDEX = 2**32 - 1


class AnchorMatcher:
    """Assigns each anchor to the ground-truth box with the highest IoU; an ``Assigner``.

    With the paper's thresholds, an anchor is positive for IoU >= 0.5, background for IoU < 0.4, else ignored.
    Low-quality matches make the anchors with the highest IoU of each box (ties included) positive as well, whatever
    that IoU is; such an anchor keeps the box of its own highest IoU. An IoU of 0 is never a match: a ground-truth box
    with zero IoU to all anchors stays unmatched.

    Anchors on a grid are searched through :class:`AnchorGrid`, which computes the IoU of few pairs only. Other anchors,
    and anchors on a GPU, are compared with all boxes, a block of boxes at a time. Both give the same bits.
    """

    # Pairs in memory at once without a grid, about 40 bytes each; all pairs of one box at least. A CPU is fastest
    # within its cache, a GPU with large blocks.
    PAIRS_AT_ONCE = 2**16
    PAIRS_AT_ONCE_ON_GPU = 2**22

    needs_predictions = False

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        thresholds: Sequence[float] = (0.4, 0.5),
        labels: Sequence[int] = (0, -1, 1),
        allow_low_quality_matches: bool = True,
    ) -> None:
        """
        Args:
            num_classes: K, the label of background.
            thresholds: increasing IoU bounds in (0, 1].
            labels: one more than thresholds, of the intervals below, between and from the bounds on: 1 positive,
                0 background, -1 ignored.
            allow_low_quality_matches: see above.

        Raises:
            ValueError: thresholds or labels that do not fit this.
        """
        thresholds, labels = list(thresholds), list(labels)
        if not thresholds or thresholds != sorted(thresholds) or not 0 < thresholds[0] <= thresholds[-1] <= 1:
            raise ValueError(f"IOU_THRESHOLDS must increase within (0, 1], got {thresholds}")
        number = len(thresholds) + 1
        if len(labels) != number or not set(labels) <= {-1, 0, 1}:
            raise ValueError(f"IOU_LABELS must be {number} of -1, 0, 1 (one more than IOU_THRESHOLDS), got {labels}")
        if labels[0] == 1:
            raise ValueError(f"IOU_LABELS {labels} would make anchors with zero IoU to all boxes positive")
        self.num_classes = num_classes
        self.thresholds = thresholds
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "thresholds": cfg.MODEL.RETINANET.IOU_THRESHOLDS,
            "labels": cfg.MODEL.RETINANET.IOU_LABELS,
            "allow_low_quality_matches": cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES,
        }

    @torch.no_grad()
    def __call__(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        predictions: RawPredictions | None = None,
        *,
        num_cell_anchors: Sequence[int] | None = None,
    ) -> Targets:
        """See :meth:`retina_plugin.modeling.assigners.Assigner.__call__`; predictions are not used."""
        grid = AnchorGrid.find(anchors, num_cell_anchors)
        all_anchors = Boxes.cat(anchors)
        shape = (len(gt_instances), len(all_anchors))
        labels = torch.full(shape, self.num_classes, dtype=torch.int64, device=all_anchors.device)
        boxes = all_anchors.tensor.new_zeros(*shape, 4)
        for image_labels, image_boxes, instances in zip(labels, boxes, gt_instances):
            matched_idxs, match_labels = self.match(all_anchors, instances.gt_boxes, grid)
            if len(instances) > 0:
                torch.index_select(instances.gt_classes, 0, matched_idxs, out=image_labels)
                torch.index_select(instances.gt_boxes.tensor, 0, matched_idxs, out=image_boxes)
                image_labels.masked_fill_(match_labels == 0, self.num_classes)
            image_labels.masked_fill_(match_labels == -1, -1)
        return Targets(labels, boxes)

    @torch.no_grad()
    def match(self, anchors: Boxes, gt_boxes: Boxes, grid: AnchorGrid | None = None) -> tuple[Tensor, Tensor]:
        """Match R anchors, on a grid if one is given, to the G boxes of an image; G may be 0.

        Returns:
            matched_idxs: int64 (R,), the box in 0..G-1 with the highest IoU to each anchor, the first of equals. For
                anchors below the lowest threshold that are no low-quality match, it is 0.
            match_labels: int8 (R,), 1 positive, 0 background, -1 ignored.
        """
        search = self._search_all if grid is None else partial(self._search_grid, grid)
        best, is_best_of_box = search(anchors, gt_boxes, self.allow_low_quality_matches)
        best_iou, best_box = _unrank(best)
        match_labels = torch.full_like(best, self.labels[0], dtype=torch.int8)
        for threshold, below, above in zip(self.thresholds, self.labels, self.labels[1:]):
            match_labels.add_(best_iou >= threshold, alpha=above - below)
        has_match = is_best_of_box | (best_iou >= self.thresholds[0])
        return best_box.mul_(has_match), match_labels.masked_fill_(is_best_of_box, 1)

    def _search_all(self, anchors: Boxes, gt_boxes: Boxes, with_best: bool) -> tuple[Tensor, Tensor]:
        """Rank (R,) of the best box of each anchor; ``with_best``, whether the anchor is the best of any box (R,)."""
        best, is_best_of_box = _no_matches(anchors)
        left, top, right, bottom = anchors.tensor.T.contiguous()
        anchor_area, box_area = anchors.area(), gt_boxes.area()
        index = torch.arange(len(gt_boxes), device=anchors.device)
        on_cpu = anchors.device.type == "cpu"
        step = max(1, (self.PAIRS_AT_ONCE if on_cpu else self.PAIRS_AT_ONCE_ON_GPU) // max(len(anchors), 1))
        for start in range(0, len(gt_boxes), step):
            some = slice(start, start + step)
            x0, y0, x1, y1 = gt_boxes.tensor[some, :, None].unbind(1)  # (some, 1)
            width, height = overlap(x0, x1, left, right), overlap(y0, y1, top, bottom)  # (some, R)
            iou = iou_of_overlaps(width, height, box_area[some, None], anchor_area)
            best = torch.maximum(best, _rank(iou, index[some, None]).amax(dim=0))
            if with_best:
                is_best_of_box |= ((iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)).any(dim=0)
        return best, is_best_of_box

    def _search_grid(self, grid: AnchorGrid, anchors: Boxes, gt_boxes: Boxes, with_best: bool) -> tuple[Tensor, Tensor]:
        """As :meth:`_search_all`, but the rank of anchors without a match may be lower."""
        best, is_best_of_box = _no_matches(anchors)
        for iou, box, anchor in grid.overlapping_pairs(gt_boxes, self.thresholds[0], with_best):
            best.scatter_reduce_(0, anchor, _rank(iou, box), "amax")
            if with_best:
                best_of_box = iou.new_zeros(len(gt_boxes)).scatter_reduce_(0, box, iou, "amax")
                is_best_of_box[anchor[(iou == best_of_box.index_select(0, box)) & (iou > 0)]] = True
        # The grid skips pairs below the threshold, so an anchor that is only a low-quality match lacks its best box.
        weak = is_best_of_box.nonzero().squeeze(1)
        weak = weak[_unrank(best[weak])[0] < self.thresholds[0]]
        best[weak], _ = self._search_all(anchors[weak], gt_boxes, with_best=False)
        return best, is_best_of_box


def _no_matches(anchors: Boxes) -> tuple[Tensor, Tensor]:
    best = torch.full((len(anchors),), _LAST_INDEX, device=anchors.device)  # IoU 0 with box 0
    return best, torch.zeros_like(best, dtype=torch.bool)


def _rank(iou: Tensor, box: Tensor) -> Tensor:
    """Combine an IoU and the index of its box in one int64: higher for a higher IoU, then for a lower index."""
    return (iou.view(torch.int32).long() << 32) | (_LAST_INDEX ^ box)  # the bits of floats >= 0 are in their order


def _unrank(rank: Tensor) -> tuple[Tensor, Tensor]:
    return (rank >> 32).int().view(torch.float32), ~rank & _LAST_INDEX


@ASSIGNER_REGISTRY.register()
def max_iou(cfg: CfgNode) -> AnchorMatcher:
    return AnchorMatcher(cfg)
