"""Predictions to detections (section 4.1, "Inference").

N images, L levels of Hl x Wl cells, A anchors a cell, Rl = Hl * Wl * A anchors of a level, K classes.
"""

from collections.abc import Callable, Sequence

import torch
import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from retina_plugin.modeling.box_coder import BoxCoder
from retina_plugin.modeling.inference.candidates import top_candidates, unravel


class Postprocessor:
    """Applies score threshold and top k to every level, decodes boxes, and keeps the best after class-wise NMS.

    A candidate is a pair of anchor and class: one anchor can give detections of several classes.
    """

    @configurable
    def __init__(
        self,
        *,
        box_coder: BoxCoder,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        clip_before_nms: bool = False,
    ) -> None:
        """
        Args:
            box_coder: the box coder that the deltas were trained with.
            score_thresh: candidates have a higher score.
            topk_candidates: maximum number of candidates of a level.
            nms_thresh: IoU above which NMS removes the box with the lower score, within a class.
            max_detections_per_image: maximum number of detections over all levels and classes.
            clip_before_nms: clip boxes to the image before NMS as well, not only afterwards.
        """
        self.box_coder = box_coder
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.clip_before_nms = clip_before_nms

    @classmethod
    def from_config(cls, cfg: CfgNode, box_coder: BoxCoder) -> dict[str, object]:
        return {
            "box_coder": box_coder,
            "score_thresh": cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
            "topk_candidates": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
            "nms_thresh": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "clip_before_nms": cfg.MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS,
        }

    def __call__(
        self,
        anchors: Sequence[Boxes],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Detect the objects of N images.

        Args:
            anchors: Rl anchors of each of L levels.
            logits: L float tensors (N, Hl, Wl, A, K); scores of half precision are computed in float32.
            deltas: L float tensors (N, Hl, Wl, A, 4); decoded in the anchors' precision.
            image_sizes: N pairs (height, width) of the unpadded images, in pixels.

        Returns:
            For each image, ``pred_boxes`` (XYXY in pixels of the network's input, clipped only if ``clip_before_nms``),
            ``scores`` (descending) and ``pred_classes``.
        """
        images = range(len(image_sizes))
        levels = [[(a, x[i], d[i]) for a, x, d in zip(anchors, logits, deltas)] for i in images]
        return [self._detect(levels[i], image_sizes[i]) for i in images]

    def _detect(self, levels: list[tuple[Boxes, Tensor, Tensor]], image_size: tuple[int, int]) -> Instances:
        found = [self._candidates(*level) for level in levels]
        scores, classes, deltas, anchors = (torch.cat(parts) for parts in zip(*found))
        candidates = Instances(
            image_size,
            pred_boxes=Boxes(self.box_coder.decode(deltas.to(anchors.dtype), anchors)),
            scores=scores.float(),
            pred_classes=classes,
        )
        if self.clip_before_nms:
            candidates.pred_boxes.clip(image_size)
        keep = _nms_of_classes()(candidates.pred_boxes.tensor, candidates.scores, classes, self.nms_thresh)
        return candidates[keep[: self.max_detections_per_image]]

    def _candidates(self, anchors: Boxes, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores (C,), classes (C,), deltas (C, 4) and anchors (C, 4) of the candidates of a level."""
        scores, index = top_candidates(logits, self.score_thresh, self.topk_candidates)
        h, w, a, classes = unravel(index, logits.shape)
        return scores, classes, deltas[h, w, a], anchors.tensor[index // logits.shape[-1]]


def _nms_of_classes() -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """Choose Detectron2's ``batched_nms``, or for a tracer the function of torchvision that it calls, as a script.

    Few boxes are computed in one way and many in another, with other rounding. A tracer would record the one that it
    sees. A script chooses at every call; ONNX has no operators for it.
    """
    if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        return torch.jit.script(torchvision.ops.batched_nms)
    return batched_nms
