"""The box loss over positive anchors (section 4, "Box Regression Subnet").

N images, R anchors in all.
"""

from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.layers import ciou_loss, diou_loss
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor, nn

from retina_plugin.config.registries import BOX_LOSS_REGISTRY
from retina_plugin.modeling.box_coder import BoxCoder

IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


class BoxLoss(Protocol):
    """Computes the sum of the box losses of all positive anchors.

    ``BOX_LOSS_REGISTRY`` has functions ``f(cfg, box_coder) -> BoxLoss``; ``BBOX_REG_LOSS_TYPE`` names one.
    """

    def __call__(self, deltas: Tensor, anchors: Tensor, gt_boxes: Tensor, positive: Tensor) -> Tensor:
        """
        Args:
            deltas: float (N, R, 4), predicted, also in half precision.
            anchors: float (R, 4), XYXY in pixels.
            gt_boxes: float (N, R, 4), the assigned box of each positive anchor, XYXY in pixels.
            positive: bool (N, R).

        Returns:
            0-dim tensor in the anchors' precision: the sum over positive anchors, not divided by the normalizer.
        """
        ...


def build_box_loss(cfg: CfgNode, box_coder: BoxCoder) -> BoxLoss:
    """Build the box loss that ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE`` names."""
    return BOX_LOSS_REGISTRY.get(cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE)(cfg, box_coder)


class BoxRegressionLoss(nn.Module):
    """Computes smooth-L1 between deltas, or a generalized IoU loss between boxes; a :class:`BoxLoss`."""

    def __init__(self, *, box_coder: BoxCoder, loss_type: str = "smooth_l1", smooth_l1_beta: float = 0.0) -> None:
        """
        Args:
            box_coder: encodes the targets of smooth-L1, decodes the predictions of the IoU losses.
            loss_type: "smooth_l1", "giou", "diou" or "ciou".
            smooth_l1_beta: the error below which smooth-L1 is quadratic; 0 is L1.

        Raises:
            ValueError: unknown loss_type, negative smooth_l1_beta.
        """
        super().__init__()
        self.box_coder = box_coder
        self.loss_type = loss_type
        self.smooth_l1_beta = smooth_l1_beta

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "loss_type" and value != "smooth_l1" and value not in IOU_LOSSES:
            raise ValueError(f"loss_type '{value}' is none of smooth_l1, {', '.join(IOU_LOSSES)}")
        if name == "smooth_l1_beta" and value < 0:
            raise ValueError(f"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA must be >= 0, got {value}")
        super().__setattr__(name, value)

    def forward(self, deltas: Tensor, anchors: Tensor, gt_boxes: Tensor, positive: Tensor) -> Tensor:
        """See :meth:`BoxLoss.__call__`; smooth-L1 is summed over the 4 deltas as well."""
        # Selecting the positive anchors would synchronize with the GPU. All anchors are computed instead; the others
        # have a harmless box, and their loss and gradient are exactly 0.
        deltas, counted = deltas.to(anchors.dtype), positive[..., None]
        gt_boxes = torch.where(counted, gt_boxes, anchors)
        if self.loss_type == "smooth_l1":
            targets = self.box_coder.encode(gt_boxes, anchors)
            deltas = torch.where(counted, deltas, targets)
            return smooth_l1_loss(deltas, targets, beta=self.smooth_l1_beta, reduction="sum")
        boxes = self.box_coder.decode(torch.where(counted, deltas, 0), anchors)
        return torch.where(positive, IOU_LOSSES[self.loss_type](boxes, gt_boxes), 0).sum()

    def extra_repr(self) -> str:
        return f"loss_type={self.loss_type}, smooth_l1_beta={self.smooth_l1_beta}"


@BOX_LOSS_REGISTRY.register()
def smooth_l1(cfg: CfgNode, box_coder: BoxCoder) -> BoxRegressionLoss:
    return BoxRegressionLoss(box_coder=box_coder, smooth_l1_beta=cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA)


@BOX_LOSS_REGISTRY.register()
def giou(cfg: CfgNode, box_coder: BoxCoder) -> BoxRegressionLoss:
    return BoxRegressionLoss(box_coder=box_coder, loss_type="giou")


@BOX_LOSS_REGISTRY.register()
def diou(cfg: CfgNode, box_coder: BoxCoder) -> BoxRegressionLoss:
    return BoxRegressionLoss(box_coder=box_coder, loss_type="diou")


@BOX_LOSS_REGISTRY.register()
def ciou(cfg: CfgNode, box_coder: BoxCoder) -> BoxRegressionLoss:
    return BoxRegressionLoss(box_coder=box_coder, loss_type="ciou")
