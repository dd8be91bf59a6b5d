"""From predictions to detections (section 4.1, "Inference").

N images, L levels, A anchors a cell, Rl anchors of a level, K classes.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from retina_plugin.modeling.inference.candidates import top_candidates, unravel


class Postprocessor:
    """Score threshold and top k of every level, box decoding, class-wise NMS, the best detections.

    A candidate is a pair of anchor and class: one anchor can give detections of several classes.
    """

    @configurable
    def __init__(
        self,
        *,
        box2box_transform,
        score_thresh=0.05,
        topk_candidates=1000,
        nms_thresh=0.5,
        max_detections_per_image=100,
        clip_before_nms=False,
    ):
        """
        Args:
            box2box_transform: Detectron2's ``Box2BoxTransform``.
            score_thresh: candidates score above it.
            topk_candidates: the most candidates of a level.
            nms_thresh: of two boxes of a class with a higher IoU, the one with the lower score goes.
            max_detections_per_image: the most detections of an image, over all levels and classes.
            clip_before_nms: cut boxes at the borders of the image before NMS compares them, not only afterwards.
        """
        self.box2box_transform = box2box_transform
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.clip_before_nms = clip_before_nms

    @classmethod
    def from_config(cls, cfg):
        return {
            "box2box_transform": Box2BoxTransform(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS),
            "score_thresh": cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
            "topk_candidates": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
            "nms_thresh": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "clip_before_nms": cfg.MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS,
        }

    def __call__(self, anchors, logits, deltas, image_sizes):
        """
        Args:
            anchors: list of L ``Boxes``, Rl anchors each.
            logits: list of L float tensors (N, Hl, Wl, A, K).
            deltas: list of L float tensors (N, Hl, Wl, A, 4). Scores and boxes are computed in float32, also of
                logits and deltas in half precision.
            image_sizes: N pairs (height, width) of the unpadded images, in pixels.

        Returns:
            list of N ``Instances`` with ``pred_boxes`` (XYXY in pixels of the network's input, not clipped unless
            ``clip_before_nms``),
            ``scores`` (descending) and ``pred_classes``.
        """
        return [
            self._detect(anchors, [x[i] for x in logits], [x[i] for x in deltas], size)
            for i, size in enumerate(image_sizes)
        ]

    def _detect(self, anchors, logits, deltas, image_size):
        levels = [self._candidates(a, x, d) for a, x, d in zip(anchors, logits, deltas)]
        scores, classes, deltas, anchors = (torch.cat(parts) for parts in zip(*levels))
        candidates = Instances(
            image_size,
            pred_boxes=Boxes(self.box2box_transform.apply_deltas(deltas, anchors)),
            scores=scores.float(),
            pred_classes=classes,
        )
        if self.clip_before_nms:
            candidates.pred_boxes.clip(image_size)
        keep = batched_nms(candidates.pred_boxes.tensor, candidates.scores, classes, self.nms_thresh)
        return candidates[keep[: self.max_detections_per_image]]

    def _candidates(self, anchors, logits, deltas):
        scores, index = top_candidates(logits, self.score_thresh, self.topk_candidates)
        h, w, a, classes = unravel(index, logits.shape)
        return scores, classes, deltas[h, w, a], anchors.tensor[index // logits.shape[-1]]
