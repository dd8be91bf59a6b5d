"""A feature pyramid on levels P3 to P7 (section 4, "Feature Pyramid Network Backbone")."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor

TOP_BLOCK_IN_FEATURES = ("res5", "p5")


class PaddedFPN(FPN):
    """Adds ``size_divisibility``, the multiple in pixels that images are padded to, to Detectron2's ``FPN``."""

    def __init__(self, *, size_divisibility: int, **fpn: Any) -> None:
        super().__init__(**fpn)
        self._multiple = size_divisibility

    @property
    def size_divisibility(self) -> int:
        return self._multiple


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """Makes P6 and P7 without a ReLU between them, as mmdetection; parameter names of ``LastLevelP6P7``."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


def build_p3p7_fpn(cfg: CfgNode, bottom_up: Backbone) -> PaddedFPN:
    """Build Detectron2's FPN on a backbone that makes "res3", "res4" and "res5", with P6 and P7 on top.

    P6 is a stride-2 3x3 convolution on C5 (``MODEL.FPN.TOP_BLOCK_IN_FEATURE: res5``, as the paper and the model zoo) or
    on P5 (``p5``, as torchvision); P7 is a stride-2 3x3 convolution on ReLU(P6), or on P6 itself with
    ``MODEL.FPN.TOP_BLOCK_RELU: False``.

    Returns:
        Module: images (N, C, H, W), H and W multiples of 32 -> dict of "p3".."p7" (also "p2" if
        ``MODEL.FPN.IN_FEATURES`` starts at res2), each (N, OUT_CHANNELS, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: ``TOP_BLOCK_IN_FEATURE`` is neither res5 nor p5, ``SIZE_DIVISIBILITY`` is not a multiple of 32, or
            the backbone does not make C5.
    """
    in_features, out_channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    top_in_feature = cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE
    if top_in_feature not in TOP_BLOCK_IN_FEATURES:
        known = " or ".join(TOP_BLOCK_IN_FEATURES)
        raise ValueError(f"MODEL.FPN.TOP_BLOCK_IN_FEATURE is '{top_in_feature}'; P6 is made from {known}")
    if cfg.MODEL.FPN.SIZE_DIVISIBILITY < 32 or cfg.MODEL.FPN.SIZE_DIVISIBILITY % 32:
        raise ValueError(f"MODEL.FPN.SIZE_DIVISIBILITY must be a multiple of 32, got {cfg.MODEL.FPN.SIZE_DIVISIBILITY}")
    made = bottom_up.output_shape()
    absent = [f for f in (*in_features, "res5") if f not in made]
    if absent or in_features[-1] != "res5":
        raise ValueError(
            f"P3-P7 need MODEL.FPN.IN_FEATURES that end at res5 and that the backbone makes: they are "
            f"{list(in_features)}, and it makes {list(made)} (a ResNet: MODEL.RESNETS.OUT_FEATURES)"
        )
    top_in_channels = made["res5"].channels if top_in_feature == "res5" else out_channels
    top_block = LastLevelP6P7 if cfg.MODEL.FPN.TOP_BLOCK_RELU else LastLevelP6P7WithoutReLU
    return PaddedFPN(
        size_divisibility=cfg.MODEL.FPN.SIZE_DIVISIBILITY,
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block(top_in_channels, out_channels, in_feature=top_in_feature),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
