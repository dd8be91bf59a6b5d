"""Box coders: boxes relative to anchors, as the box subnet predicts them (section 4, "Box Regression Subnet").

R anchors in all.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from retina_plugin.config.registries import BOX_CODER_REGISTRY


class BoxCoder(Protocol):
    """Encodes boxes as 4 deltas relative to anchors, and decodes them.

    One object encodes for the box loss and decodes for the post-processing. ``BOX_CODER_REGISTRY`` has functions
    ``f(cfg) -> BoxCoder``; ``MODEL.RETINANET.BOX_CODER`` names one.
    """

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Compute the deltas (..., 4) of boxes (..., 4). Boxes and anchors are XYXY in pixels.

        The shape of the anchors, such as (R, 4), expands to that of the boxes. No synchronization with the host.
        """
        ...

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Compute the boxes (..., 4) of deltas (..., 4): the inverse of :meth:`encode`, differentiable."""
        ...


def build_box_coder(cfg: CfgNode) -> BoxCoder:
    """Build the box coder that ``MODEL.RETINANET.BOX_CODER`` names."""
    return BOX_CODER_REGISTRY.get(cfg.MODEL.RETINANET.BOX_CODER)(cfg)


class DeltaXYWHCoder:
    """Encodes offsets of the center relative to the anchor's size, and log ratios of the sizes, as R-CNN.

    The numbers are those of Detectron2's ``Box2BoxTransform``: (dx, dy, dw, dh) times ``weights``. Decoded boxes are
    float32 and at most 1000 / 16 times as wide and high as the anchor.

    Attributes:
        transform: the ``Box2BoxTransform`` with the weights.
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.transform = Box2BoxTransform(weights=tuple(weights))

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """See :meth:`BoxCoder.encode`. ``Box2BoxTransform.get_deltas`` would synchronize to validate the anchors."""
        wx, wy, ww, wh = self.transform.weights
        anchor_size, box_size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
        shift = (boxes[..., :2] + 0.5 * box_size) - (anchors[..., :2] + 0.5 * anchor_size)
        width, height = anchor_size.unbind(-1)
        growth = torch.log(box_size / anchor_size)
        deltas = (wx * shift[..., 0] / width, wy * shift[..., 1] / height, ww * growth[..., 0], wh * growth[..., 1])
        return torch.stack(deltas, dim=-1)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """See :meth:`BoxCoder.decode`."""
        anchors = anchors.expand(deltas.shape)
        return self.transform.apply_deltas(deltas.reshape(-1, 4), anchors.reshape(-1, 4)).view(deltas.shape)


@BOX_CODER_REGISTRY.register()
def delta_xywh(cfg: CfgNode) -> DeltaXYWHCoder:
    return DeltaXYWHCoder(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS)
