"""torchvision's RetinaNet with the weights of the others."""

import re

import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks import inputs
from benchmarks.models import unit_batch

_P6 = "backbone.fpn.extra_blocks.p6"
_RENAMES = [
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^backbone\.bottom_up\.stem\.", "backbone.body."),
    (r"^backbone\.bottom_up\.res(\d)\.", lambda match: f"backbone.body.layer{int(match[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda match: f"backbone.fpn.inner_blocks.{int(match[1]) - 3}.0."),
    (r"^backbone\.fpn_output(\d)\.", lambda match: f"backbone.fpn.layer_blocks.{int(match[1]) - 3}.0."),
    (r"^backbone\.top_block\.", "backbone.fpn.extra_blocks."),
    (r"^head\.cls_subnet\.(\d)\.", lambda match: f"head.classification_head.conv.{int(match[1]) // 2}.0."),
    (r"^head\.bbox_subnet\.(\d)\.", lambda match: f"head.regression_head.conv.{int(match[1]) // 2}.0."),
    (r"^head\.cls_score\.", "head.classification_head.cls_logits."),
    (r"^head\.bbox_pred\.", "head.regression_head.bbox_reg."),
]


def build(cfg, state, size):
    """torchvision's ``retinanet_resnet50_fpn`` as it is when it starts from trained weights.

    That is, with frozen normalization and three of five stages trained, as in Detectron2's configuration. P6 has random
    weights of its own: torchvision makes it from P5. Its ResNet has the stride in the 3x3 convolutions (Detectron2's
    R-50: in the 1x1 ones), and its anchors are rounded to pixels.

    Args:
        cfg: the configuration of Detectron2's RetinaNet.
        state: weights of ``benchmarks.models.weights``.
        size: images have ``inputs.picture_shape(size)``, so that its own resizing changes nothing. They are given in
            BGR, divided by 255.
    """
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{cfg.MODEL.RESNETS.DEPTH}",
        weights=None,
        trainable_layers=5 - cfg.MODEL.BACKBONE.FREEZE_AT,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.OUT_CHANNELS),
    )
    shape = inputs.picture_shape(size)
    model = RetinaNet(
        backbone,
        num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
        min_size=min(shape),
        max_size=max(shape),
        image_mean=[x / 255 for x in cfg.MODEL.PIXEL_MEAN],
        image_std=[x / 255 for x in cfg.MODEL.PIXEL_STD],
        detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    incompatible = model.load_state_dict(renamed(state), strict=False)
    assert incompatible.unexpected_keys == [], incompatible
    assert incompatible.missing_keys == [f"{_P6}.weight", f"{_P6}.bias"], incompatible
    _draw_p6(model, cfg)
    return model.to(cfg.MODEL.DEVICE)


@torch.no_grad()
def _draw_p6(model, cfg):
    weight = model.backbone.fpn.extra_blocks.p6.weight
    weight.normal_(generator=inputs.generator())
    images = torch.stack([x["image"] for x in unit_batch()])
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    weight.div_(model.backbone((images - mean) / std)["p6"].std())  # unit size, as the other levels


def renamed(state):
    """Weights of Detectron2's RetinaNet under the names and in the order of torchvision's, without P6."""
    result = {}
    for name, value in state.items():
        if name.startswith("backbone.top_block.p6."):
            continue
        if name.startswith(("head.cls_score.", "head.bbox_pred.")):
            # Anchors of a cell: size-major there, ratio-major here. Three of each.
            value = value.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)
        for theirs, ours in _RENAMES:
            name = re.sub(theirs, ours, name)
        result[name] = value
    return result
