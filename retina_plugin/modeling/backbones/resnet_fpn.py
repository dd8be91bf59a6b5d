"""ResNet or ResNeXt with a feature pyramid on levels P3 to P7 (section 4, "Feature Pyramid Network Backbone")."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor

from retina_plugin.config import require_retina_config

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


@BACKBONE_REGISTRY.register()
def build_p3p7_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PaddedFPN:
    """Build Detectron2's ResNet and FPN with P6 and P7 on top.

    P6 is a stride-2 3x3 convolution on C5 (``MODEL.FPN.TOP_BLOCK_IN_FEATURE: res5``, as the paper and the model zoo) or
    on P5 (``p5``, as torchvision); P7 is a stride-2 3x3 convolution on ReLU(P6), or on P6 itself with
    ``MODEL.FPN.TOP_BLOCK_RELU: False``. ``MODEL.RESNETS`` selects ResNet-18 to 152 or ResNeXt, ``MODEL.FPN`` channels
    and normalization. Parameter names are those of Detectron2's ``build_retinanet_resnet_fpn_backbone``.

    Returns:
        Module: images (N, C, H, W), H and W multiples of 32 -> dict of "p3".."p7" (also "p2" if
        ``MODEL.FPN.IN_FEATURES`` starts at res2), each (N, OUT_CHANNELS, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: ``TOP_BLOCK_IN_FEATURE`` is neither res5 nor p5, ``SIZE_DIVISIBILITY`` is not a multiple of 32, or
            the ResNet does not output C5.
    """
    require_retina_config(cfg)
    in_features, out_channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    top_in_feature = cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE
    if top_in_feature not in TOP_BLOCK_IN_FEATURES:
        known = " or ".join(TOP_BLOCK_IN_FEATURES)
        raise ValueError(f"MODEL.FPN.TOP_BLOCK_IN_FEATURE is '{top_in_feature}'; P6 is made from {known}")
    if cfg.MODEL.FPN.SIZE_DIVISIBILITY < 32 or cfg.MODEL.FPN.SIZE_DIVISIBILITY % 32:
        raise ValueError(f"MODEL.FPN.SIZE_DIVISIBILITY must be a multiple of 32, got {cfg.MODEL.FPN.SIZE_DIVISIBILITY}")
    bottom_up = build_resnet_backbone(cfg, input_shape)
    made = bottom_up.output_shape()
    absent = [f for f in (*in_features, "res5") if f not in made]
    if absent or in_features[-1] != "res5":
        raise ValueError(
            f"P3-P7 need MODEL.FPN.IN_FEATURES that end at res5 and are all in MODEL.RESNETS.OUT_FEATURES; "
            f"got IN_FEATURES {list(in_features)}, OUT_FEATURES {list(made)}"
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
