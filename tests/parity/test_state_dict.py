"""Checkpoints of either detector are checkpoints of the other."""

import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from .conftest import make_config

EXTRA = {"loss_normalizer.ema"}


@pytest.mark.parametrize("name", ["retinanet_R50.yaml", pytest.param("retinanet_R101.yaml", marks=pytest.mark.slow)])
def test_same_keys_and_shapes_and_loads_both_ways(name, tmp_path, caplog):
    cfg, their_cfg = make_config(name)
    ours, theirs = build_model(cfg), build_model(their_cfg)
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v for k, v in shapes.items() if k not in EXTRA}
    assert set(shapes) >= EXTRA

    before = ours.loss_normalizer.ema.clone()
    DetectionCheckpointer(theirs, str(tmp_path)).save("theirs")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(ours).load(str(tmp_path / "theirs.pth"))
    assert [r.message for r in caplog.records] == [], "a checkpoint without the buffer loads without a word"
    assert_equal_state(ours, theirs)
    assert torch.equal(ours.loss_normalizer.ema, before)

    for p in ours.parameters():
        torch.nn.init.normal_(p)
    DetectionCheckpointer(ours, str(tmp_path)).save("ours")
    DetectionCheckpointer(theirs).load(str(tmp_path / "ours.pth"))
    assert_equal_state(ours, theirs)


def assert_equal_state(ours, theirs):
    state = ours.state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value), key
