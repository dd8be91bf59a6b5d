"""The feature pyramid on P3 to P7."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from retina_plugin import add_retina_config


def make_backbone(depth=18, **overrides):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_p3p7_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.merge_from_list([word for item in overrides.items() for word in (item[0].replace("__", "."), item[1])])
    return build_backbone(cfg, ShapeSpec(channels=3)).eval()


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(64, 96), (32, 32), (160, 32)])
def test_levels_and_sizes(height, width):
    backbone = make_backbone()
    assert backbone.size_divisibility == 32
    features = backbone(torch.randn(2, 3, height, width))
    assert list(features) == ["p3", "p4", "p5", "p6", "p7"]
    for level, (name, x) in zip(range(3, 8), features.items()):
        stride = 2**level
        assert x.shape == (2, 16, -(-height // stride), -(-width // stride))
        assert backbone.output_shape()[name] == ShapeSpec(channels=16, stride=stride)


@torch.no_grad()
@pytest.mark.parametrize("source, channels", [("res5", 512), ("p5", 16)])
def test_p6_and_p7(source, channels):
    """P6 is a convolution on C5 or P5, P7 one on ReLU(P6)."""
    backbone = make_backbone(MODEL__FPN__TOP_BLOCK_IN_FEATURE=source)
    image = torch.randn(1, 3, 64, 64)
    features = backbone(image)
    top_block = backbone.top_block
    assert top_block.p6.weight.shape == (16, channels, 3, 3)
    below = backbone.bottom_up(image)["res5"] if source == "res5" else features["p5"]
    p6 = F.conv2d(below, top_block.p6.weight, top_block.p6.bias, stride=2, padding=1)
    p7 = F.conv2d(p6.clamp(min=0), top_block.p7.weight, top_block.p7.bias, stride=2, padding=1)
    torch.testing.assert_close(features["p6"], p6)
    torch.testing.assert_close(features["p7"], p7)


@pytest.mark.parametrize("depth, blocks", [(18, 2), (34, 6), (50, 6), pytest.param(101, 23), pytest.param(152, 36)])
def test_depths(depth, blocks):
    backbone = make_backbone(depth)
    assert len(backbone.bottom_up.res4) == blocks
    assert backbone.top_block.p6.in_channels == (512 if depth < 50 else 2048)


def test_size_divisibility():
    assert make_backbone().size_divisibility == 32
    assert make_backbone(MODEL__FPN__SIZE_DIVISIBILITY=128).size_divisibility == 128


def test_resnext():
    backbone = make_backbone(50, MODEL__RESNETS__NUM_GROUPS=32, MODEL__RESNETS__WIDTH_PER_GROUP=8)
    conv = backbone.bottom_up.res2[0].conv2
    assert conv.groups == 32 and conv.in_channels == 256


def test_starts_at_p2_if_configured():
    levels = ["res2", "res3", "res4", "res5"]
    backbone = make_backbone(MODEL__RESNETS__OUT_FEATURES=levels, MODEL__FPN__IN_FEATURES=levels)
    assert list(backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6", "p7"]


@torch.no_grad()
@pytest.mark.parametrize("relu", [True, False])
def test_p7_is_made_from_p6_with_or_without_relu(relu):
    backbone = make_backbone(MODEL__FPN__TOP_BLOCK_RELU=relu)
    levels = backbone(torch.randn(1, 3, 128, 128))
    p6, p7 = levels["p6"], backbone.top_block.p7
    expected = F.conv2d(p6.relu() if relu else p6, p7.weight, p7.bias, stride=2, padding=1)
    assert (p6 < 0).any() and torch.equal(levels["p7"], expected)
    assert set(dict(backbone.top_block.named_parameters())) == {f"p{i}.{x}" for i in (6, 7) for x in ("weight", "bias")}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"MODEL__FPN__TOP_BLOCK_IN_FEATURE": "p4"}, "p4.*res5 or p5"),
        ({"MODEL__FPN__SIZE_DIVISIBILITY": 48}, "multiple of 32, got 48"),
        ({"MODEL__FPN__SIZE_DIVISIBILITY": 0}, "multiple of 32, got 0"),
        ({"MODEL__FPN__IN_FEATURES": ["res3", "res4"]}, "end at res5"),
        ({"MODEL__RESNETS__OUT_FEATURES": ["res4", "res5"]}, "OUT_FEATURES"),
    ],
)
def test_invalid_pyramids_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(**overrides)
