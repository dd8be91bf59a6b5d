"""The project's parts. N images, L levels, A anchors a cell, R anchors in all, K classes."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from retina_plugin.losses import CLASSIFICATION_LOSS_REGISTRY, ClassificationLoss, LossContext, Targets
from retina_plugin.modeling import (
    ASSIGNER_REGISTRY,
    BOX_CODER_REGISTRY,
    BOX_LOSS_REGISTRY,
    RETINANET_HEAD_REGISTRY,
    Assigner,
    BoxCoder,
    BoxLoss,
    HeadOutput,
    RawPredictions,
)


@RETINANET_HEAD_REGISTRY.register()
class ForeignHead(nn.Module):
    """One convolution for everything, and a further prediction."""

    def __init__(self, cfg: CfgNode, input_shape: list[ShapeSpec]):
        super().__init__()
        num_anchors = build_anchor_generator(cfg, input_shape).num_cell_anchors[0]
        self.sizes = [num_anchors * cfg.MODEL.RETINANET.NUM_CLASSES, num_anchors * 4, 1]
        self.predict = nn.Conv2d(input_shape[0].channels, sum(self.sizes), 3, padding=1)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.constant_(self.predict.bias[: self.sizes[0]], -4.0)

    def forward(self, features: list[Tensor]) -> HeadOutput:
        logits, deltas, quality = zip(*(self.predict(x).split(self.sizes, dim=1) for x in features))
        return HeadOutput(list(logits), list(deltas), {"quality": list(quality)})


class IouAssigner:
    """Makes anchors positive by their IoU, which is the soft target of their class."""

    def __init__(self, threshold: float, num_classes: int):
        self.threshold, self.num_classes = threshold, num_classes

    def __call__(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        predictions: RawPredictions | None = None,
        *,
        num_cell_anchors: Sequence[int] | None = None,
    ) -> Targets:
        all_anchors = Boxes.cat(anchors)
        labels, boxes, scores = [], [], []
        for instances in gt_instances:
            iou, index = pairwise_iou(instances.gt_boxes, all_anchors).max(dim=0)
            labels.append(torch.where(iou >= self.threshold, instances.gt_classes[index], self.num_classes))
            boxes.append(instances.gt_boxes.tensor[index])
            scores.append(iou)
        return Targets(torch.stack(labels), torch.stack(boxes), torch.stack(scores))


@ASSIGNER_REGISTRY.register()
def foreign_iou(cfg: CfgNode) -> Assigner:
    return IouAssigner(cfg.MODEL.RETINANET.FOREIGN_IOU, cfg.MODEL.RETINANET.NUM_CLASSES)


class SoftCrossEntropy(nn.Module):
    """Cross entropy with the soft targets of the assigner."""

    def forward(
        self, logits: Sequence[Tensor], targets: Targets, context: LossContext, normalizer: Tensor | float
    ) -> Tensor:
        scores = targets.scores_by_level(logits)
        assert scores is not None
        total = logits[0].new_zeros(())
        for x, labels, score in zip(logits, targets.labels_by_level(logits), scores):
            wanted = F.one_hot(labels, x.shape[-1] + 1)[..., :-1] * score[..., None]
            total = total + F.binary_cross_entropy_with_logits(x.float(), wanted, reduction="sum")
        return total / normalizer


@CLASSIFICATION_LOSS_REGISTRY.register()
def foreign_soft(cfg: CfgNode) -> ClassificationLoss:
    return SoftCrossEntropy()


class CornerCoder:
    """Encodes the four sides relative to the size of the anchor."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return (boxes - anchors) / self._size(anchors)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return anchors + deltas.float() * self._size(anchors)

    def _size(self, anchors: Tensor) -> Tensor:
        return (anchors[..., 2:] - anchors[..., :2]).repeat_interleave(2, dim=-1).clamp(min=1)[..., [0, 2, 1, 3]]


@BOX_CODER_REGISTRY.register()
def foreign_corners(cfg: CfgNode) -> BoxCoder:
    return CornerCoder()


class CornerLoss(nn.Module):
    """L1 loss of the codes of positive anchors."""

    def __init__(self, box_coder: BoxCoder):
        super().__init__()
        self.box_coder: Any = box_coder

    def forward(self, deltas: Tensor, anchors: Tensor, gt_boxes: Tensor, positive: Tensor) -> Tensor:
        error = (deltas.float() - self.box_coder.encode(gt_boxes, anchors)).abs().sum(dim=-1)
        return (error * positive).sum()


@BOX_LOSS_REGISTRY.register()
def foreign_l1(cfg: CfgNode, box_coder: BoxCoder) -> BoxLoss:
    return CornerLoss(box_coder)
