"""Which anchor answers for which box (section 4, "Anchors").

R anchors of all levels, G boxes of an image.
"""

import torch
from detectron2.config import configurable
from detectron2.structures import pairwise_iou


class AnchorMatcher:
    """Assigns each anchor to the box it overlaps most, and says whether that makes it positive.

    With the paper's thresholds: IoU >= 0.5 is positive, IoU < 0.4 background, in between ignored.
    With low-quality matches, the anchors that overlap a box most (ties included) are positive as well,
    whatever their IoU is; such an anchor keeps the box that it overlaps most itself. An IoU of 0 is never a
    match: a box that no anchor touches stays without one.
    """

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
    def __call__(self, anchors, gt_boxes):
        """
        Args:
            anchors: ``Boxes`` of R anchors.
            gt_boxes: ``Boxes`` of G ground-truth boxes, G may be 0.

        Returns:
            matched_idxs: int64 (R,), the box in 0..G-1 that each anchor overlaps most (0 where it overlaps
                none, or G = 0).
            match_labels: int8 (R,), 1 positive, 0 background, -1 ignored.
        """
        device = anchors.device
        if len(gt_boxes) == 0:
            matched_idxs = torch.zeros(len(anchors), dtype=torch.int64, device=device)
            return matched_idxs, torch.full_like(matched_idxs, self.labels[0], dtype=torch.int8)

        iou = pairwise_iou(gt_boxes, anchors)  # (G, R)
        best_iou, matched_idxs = iou.max(dim=0)
        thresholds = torch.tensor(self.thresholds, dtype=iou.dtype, device=device)
        labels = torch.tensor(self.labels, dtype=torch.int8, device=device)
        match_labels = labels[torch.bucketize(best_iou, thresholds, right=True)]
        if self.allow_low_quality_matches:
            best_of_box = iou.max(dim=1, keepdim=True).values  # (G, 1)
            match_labels[((iou == best_of_box) & (iou > 0)).any(dim=0)] = 1
        return matched_idxs, match_labels
