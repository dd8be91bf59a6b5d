"""The box loss over positive anchors (section 4, "Box Regression Subnet")."""

from detectron2.config import configurable
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import nn

IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


class BoxRegressionLoss(nn.Module):
    """Smooth-L1 between deltas, or a generalised IoU loss between decoded and ground-truth boxes."""

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

    def forward(self, deltas, anchors, gt_boxes):
        """
        Args:
            deltas: float (P, 4), predicted for the P positive anchors; computed in the anchors' precision.
            anchors: float (P, 4), XYXY in pixels.
            gt_boxes: float (P, 4), the box each anchor is assigned to, XYXY in pixels.

        Returns:
            0-dim tensor: the sum over anchors (and over the 4 deltas for smooth-L1).
        """
        if self.loss_type == "smooth_l1":
            targets = self.box2box_transform.get_deltas(anchors, gt_boxes)
            return smooth_l1_loss(deltas.to(anchors.dtype), targets, beta=self.smooth_l1_beta, reduction="sum")
        return IOU_LOSSES[self.loss_type](self.decode(deltas, anchors), gt_boxes, reduction="sum")

    def decode(self, deltas, anchors):
        """Boxes (..., 4), XYXY in pixels, from deltas (..., 4) and anchors of a shape that expands to theirs."""
        deltas, anchors = deltas.to(anchors.dtype), anchors.expand(deltas.shape)
        return self.box2box_transform.apply_deltas(deltas.reshape(-1, 4), anchors.reshape(-1, 4)).view(deltas.shape)

    def extra_repr(self):
        beta = f", smooth_l1_beta={self.smooth_l1_beta}" if self.loss_type == "smooth_l1" else ""
        return f"loss_type={self.loss_type}{beta}"
