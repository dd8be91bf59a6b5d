"""Which anchor answers for which box (section 4, "Anchors").

R anchors of all levels, G boxes of an image.
"""

from functools import partial

import torch
from detectron2.config import configurable

from retina_plugin.modeling.assigners.anchor_grid import iou_of_overlaps, overlap

_LAST_INDEX = 2**32 - 1


def _rank(iou, box):
    """An IoU and the index of its box as one int64: a higher IoU is higher, and of equal ones the lower index."""
    return (iou.view(torch.int32).long() << 32) | (_LAST_INDEX ^ box)  # floats >= 0 are in the order of their bits


def _unrank(rank):
    return (rank >> 32).int().view(torch.float32), ~rank & _LAST_INDEX


class AnchorMatcher:
    """Assigns anchors to the box they overlap most, and says whether that makes them positive.

    With the paper's thresholds: IoU >= 0.5 is positive, IoU < 0.4 background, in between ignored.
    With low-quality matches, the anchors that overlap a box most (ties included) are positive as well,
    whatever their IoU is; such an anchor keeps the box that it overlaps most itself. An IoU of 0 is never a
    match: a box that no anchor touches stays without one.

    Given the anchors' grid, only pairs of a box and an anchor that can matter are looked at. Without it (on a GPU, or
    for anchors that are no grid), all of them are, some boxes at a time. Both give the same, to the last bit.
    """

    # Without a grid, so many pairs are in memory at once, about 40 bytes each, but all those of one box at least. A CPU
    # is fastest within its cache, a GPU with much to do at once.
    PAIRS_AT_ONCE = 2**16
    PAIRS_AT_ONCE_ON_GPU = 2**22

    @configurable
    def __init__(self, *, thresholds=(0.4, 0.5), labels=(0, -1, 1), allow_low_quality_matches=True):
        """
        Args:
            thresholds: T increasing IoU bounds in (0, 1].
            labels: T + 1 labels of the intervals below, between and from the bounds on:
                1 positive, 0 background, -1 ignored.
            allow_low_quality_matches: see above.

        Raises:
            ValueError: thresholds or labels that do not fit this.
        """
        thresholds, labels = list(thresholds), list(labels)
        if not thresholds or thresholds != sorted(thresholds) or not 0 < thresholds[0] <= thresholds[-1] <= 1:
            raise ValueError(f"IOU_THRESHOLDS must increase within (0, 1], got {thresholds}")
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise ValueError(
                f"IOU_LABELS must be {len(thresholds) + 1} labels (one more than IOU_THRESHOLDS) out of "
                f"-1, 0, 1; got {labels}"
            )
        if labels[0] == 1:
            raise ValueError(f"IOU_LABELS {labels} would make anchors positive that touch no box")
        self.thresholds = thresholds
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    @classmethod
    def from_config(cls, cfg):
        return {
            "thresholds": cfg.MODEL.RETINANET.IOU_THRESHOLDS,
            "labels": cfg.MODEL.RETINANET.IOU_LABELS,
            "allow_low_quality_matches": cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES,
        }

    @torch.no_grad()
    def __call__(self, anchors, gt_boxes, grid=None):
        """
        Args:
            anchors: ``Boxes`` of R anchors.
            gt_boxes: ``Boxes`` of G ground-truth boxes, G may be 0.
            grid: the :class:`AnchorGrid` of these anchors, or None.

        Returns:
            matched_idxs: int64 (R,), the box in 0..G-1 that an anchor overlaps most, the first of equals. For anchors
                below the lowest threshold that are no low-quality match, it is 0.
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

    def _search_all(self, anchors, gt_boxes, with_best):
        """The rank (R,) of the best box of each anchor, and whether the anchor is the best of any box (R,).

        Without ``with_best``, the latter is False for all.
        """
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

    def _search_grid(self, grid, anchors, gt_boxes, with_best):
        """As :meth:`_search_all`, but anchors without a match may have a lower rank."""
        best, is_best_of_box = _no_matches(anchors)
        for iou, box, anchor in grid.overlapping_pairs(gt_boxes, self.thresholds[0], with_best):
            best.scatter_reduce_(0, anchor, _rank(iou, box), "amax")
            if with_best:
                best_of_box = iou.new_zeros(len(gt_boxes)).scatter_reduce_(0, box, iou, "amax")
                is_best_of_box[anchor[(iou == best_of_box.index_select(0, box)) & (iou > 0)]] = True
        # An anchor that is only a low-quality match may overlap another box more. That pair did not matter until now.
        weak = is_best_of_box.nonzero().squeeze(1)
        weak = weak[_unrank(best[weak])[0] < self.thresholds[0]]
        best[weak], _ = self._search_all(anchors[weak], gt_boxes, with_best=False)
        return best, is_best_of_box


def _no_matches(anchors):
    best = torch.full((len(anchors),), _LAST_INDEX, device=anchors.device)  # IoU 0 with box 0
    return best, torch.zeros_like(best, dtype=torch.bool)
