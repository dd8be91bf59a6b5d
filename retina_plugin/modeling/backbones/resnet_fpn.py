"""ResNet / ResNeXt with a feature pyramid on levels P3 to P7 (section 4, "Feature Pyramid Network Backbone")."""

from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from retina_plugin.config import require_retina_config

TOP_BLOCK_IN_FEATURES = ("res5", "p5")


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """P6 and P7 without a non-linearity between them, as in mmdetection; the names of its parent's parameters."""

    def forward(self, c5):
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_p3p7_resnet_fpn_backbone(cfg, input_shape):
    """Build Detectron2's ResNet and FPN with P6 and P7 on top.

    P6 is a stride-2 3x3 convolution on C5 (``MODEL.FPN.TOP_BLOCK_IN_FEATURE: res5``, as the paper and the
    model zoo) or on P5 (``p5``, as torchvision); P7 is a stride-2 3x3 convolution on ReLU(P6), or on P6 itself with
    ``MODEL.FPN.TOP_BLOCK_RELU: False``.

    ``MODEL.RESNETS`` chooses ResNet-18 to 152 or ResNeXt, ``MODEL.FPN`` channels and normalization. The
    parameter names are those of Detectron2's ``build_retinanet_resnet_fpn_backbone``.

    Args:
        cfg: a Detectron2 ``CfgNode`` with the keys of ``add_retina_config``.
        input_shape: ``ShapeSpec`` of the image (its number of channels).

    Returns:
        :class:`FPN`: image (N, C, H, W), H and W multiples of 32 -> dict of "p3".."p7" (and "p2" if
        ``MODEL.FPN.IN_FEATURES`` starts at res2), each (N, ``MODEL.FPN.OUT_CHANNELS``, ceil(H / stride),
        ceil(W / stride)).

    Raises:
        ValueError: ``TOP_BLOCK_IN_FEATURE`` is neither res5 nor p5, ``SIZE_DIVISIBILITY`` is no multiple of 32,
            or C5 is not made.
    """
    require_retina_config(cfg)
    in_features, out_channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    top_in_feature = cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE
    if top_in_feature not in TOP_BLOCK_IN_FEATURES:
        raise ValueError(
            f"MODEL.FPN.TOP_BLOCK_IN_FEATURE is '{top_in_feature}'; P6 is made from "
            f"{' or '.join(TOP_BLOCK_IN_FEATURES)}"
        )
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
    fpn = FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block(top_in_channels, out_channels, in_feature=top_in_feature),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    fpn._size_divisibility = cfg.MODEL.FPN.SIZE_DIVISIBILITY  # which Detectron2 takes from C5
    return fpn
