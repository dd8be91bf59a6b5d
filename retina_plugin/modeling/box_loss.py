"""The box loss over positive anchors (section 4, "Box Regression Subnet").

N images, R anchors.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import nn

IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


class BoxRegressionLoss(nn.Module):
    """Smooth-L1 between deltas, or a generalized IoU loss between decoded and ground-truth boxes."""

    @configurable
    def __init__(self, *, box2box_transform, loss_type="smooth_l1", smooth_l1_beta=0.0):
        """
        Args:
            box2box_transform: Detectron2's ``Box2BoxTransform``: how deltas and boxes belong together.
            loss_type: "smooth_l1", "giou", "diou" or "ciou".
            smooth_l1_beta: the error below which smooth-L1 is quadratic; 0 is L1.

        Raises:
            ValueError: unknown loss_type, negative smooth_l1_beta.
        """
        super().__init__()
        if loss_type != "smooth_l1" and loss_type not in IOU_LOSSES:
            raise ValueError(
                f"MODEL.RETINANET.BBOX_REG_LOSS_TYPE '{loss_type}' is none of smooth_l1, {', '.join(IOU_LOSSES)}"
            )
        if smooth_l1_beta < 0:
            raise ValueError(f"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA must be >= 0, got {smooth_l1_beta}")
        self.box2box_transform = box2box_transform
        self.loss_type = loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg):
        return {
            "box2box_transform": Box2BoxTransform(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS),
            "loss_type": cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA,
        }

    def forward(self, deltas, anchors, gt_boxes, positive):
        """
        Args:
            deltas: float (N, R, 4), predicted; computed in the anchors' precision.
            anchors: float (R, 4), XYXY in pixels.
            gt_boxes: float (N, R, 4), the box each positive anchor is assigned to, XYXY in pixels.
            positive: bool (N, R), the anchors that count.

        Returns:
            0-dim tensor: the sum over positive anchors (and over the 4 deltas for smooth-L1).
        """
        # Picking out the positives would make the host wait until a GPU has counted them. So all anchors are computed,
        # the others as if they predicted themselves and ought to: their loss and gradient are exactly 0.
        counted = positive[..., None]
        deltas = torch.where(counted, deltas.to(anchors.dtype), 0)
        gt_boxes = torch.where(counted, gt_boxes, anchors)
        if self.loss_type == "smooth_l1":
            targets = self.encode(gt_boxes, anchors)
            return smooth_l1_loss(deltas, targets, beta=self.smooth_l1_beta, reduction="sum")
        loss = IOU_LOSSES[self.loss_type](self.decode(deltas, anchors), gt_boxes)
        return torch.where(positive, loss, 0).sum()

    def encode(self, boxes, anchors):
        """Deltas (..., 4) from boxes (..., 4) and anchors (R, 4), operation by operation as ``Box2BoxTransform``.

        Its own ``get_deltas`` first looks whether the anchors are valid, for which the host waits for a GPU.
        """
        wx, wy, ww, wh = self.box2box_transform.weights
        anchor_size, box_size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
        shift = (boxes[..., :2] + 0.5 * box_size) - (anchors[..., :2] + 0.5 * anchor_size)
        width, height = anchor_size.unbind(-1)
        growth = torch.log(box_size / anchor_size)
        deltas = (wx * shift[..., 0] / width, wy * shift[..., 1] / height, ww * growth[..., 0], wh * growth[..., 1])
        return torch.stack(deltas, dim=-1)

    def decode(self, deltas, anchors):
        """Boxes (..., 4), XYXY in pixels, from deltas (..., 4) and anchors of a shape that expands to theirs."""
        deltas, anchors = deltas.to(anchors.dtype), anchors.expand(deltas.shape)
        return self.box2box_transform.apply_deltas(deltas.reshape(-1, 4), anchors.reshape(-1, 4)).view(deltas.shape)

    def extra_repr(self):
        beta = f", smooth_l1_beta={self.smooth_l1_beta}" if self.loss_type == "smooth_l1" else ""
        return f"loss_type={self.loss_type}{beta}"
