"""Levels that the head does not use: every trainable parameter gets a gradient, as several processes need it."""

import logging

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage

from retina_plugin.modeling.backbones.unused import freeze_unused

from ..engine.small import make_cfg, make_image

TWO_LEVELS = (
    *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4"], "MODEL.FPN.NORM", "BN"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16.0], [32.0]]),
)
DETECTRON2S = (
    *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.BACKBONE.FREEZE_AT", 0),
)


@pytest.mark.parametrize(
    "opts, frozen",
    [
        (TWO_LEVELS, [f"levels.2.{name}" for name in ("weight", "bias", "norm.weight", "norm.bias")]),
        (DETECTRON2S, [f"top_block.{name}" for name in ("p6.weight", "p6.bias", "p7.weight", "p7.bias")]),
        ((), []),
    ],
)
def test_unused_parameters_are_frozen_and_named(seed, caplog, opts, frozen):
    with caplog.at_level(logging.WARNING):
        model = build_model(make_cfg(*opts)).train()
    names = [name for name, p in model.backbone.named_parameters() if not p.requires_grad]
    assert names == frozen
    lines = [line for line in caplog.messages if "IN_FEATURES" in line]
    assert len(lines) == bool(frozen) and all(f"{len(names)} parameters of the backbone" in line for line in lines)
    with EventStorage():
        sum(model([make_image(seed, i, 3) for i in range(2)]).values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_nothing_else_changes(seed):
    cfg = make_cfg(*TWO_LEVELS)
    backbone = build_backbone(cfg).train()
    state, random_state = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.get_rng_state()
    assert freeze_unused(backbone, ["p3", "p4"], 3)
    assert backbone.training and torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())


def test_a_backbone_that_cannot_run_is_left_alone():
    backbone = build_backbone(make_cfg(*TWO_LEVELS))
    assert freeze_unused(backbone, ["p3", "p4"], 5) == []
    assert all(p.requires_grad for p in backbone.parameters())
