"""Small detectors, this plugin's and Detectron2's own, and files in the formats of others."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from retina_plugin import add_retina_config, merge_config

BASE = Path(__file__).parents[2] / "configs" / "Base-RetinaNet.yaml"
SMALL = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 32),
    *("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.DEVICE", "cpu", "MODEL.PIXEL_STD", [57.4, 57.1, 58.4]),
)
THEIRS = ("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone")


def small_config(*opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(BASE), [*SMALL, *opts])
    return cfg


def small_model(*opts, random=False):
    """A detector with fresh weights, or with random numbers in every parameter and statistic."""
    model = build_model(small_config(*opts)).eval()
    if random:
        for name, value in model.state_dict().items():
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else 0.05 * torch.randn_like(value))
    return model


def as_arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def copies(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@torch.no_grad()
def assert_same_predictions(ours, theirs, batch):
    """Compare all logits and deltas, and what Detectron2's own RetinaNet makes detections of.

    Detections are not compared: which of two nearly equal scores is the higher one, rounding decides.
    """
    mine = ours.raw_predictions(batch)
    features = theirs.backbone(theirs.preprocess_image(batch).tensor)
    features = [features[f] for f in theirs.head_in_features]
    for levels, others in zip((mine.logits, mine.deltas), theirs.head(features), strict=True):
        for level, other in zip(levels, others, strict=True):
            other = other.unflatten(1, (level.shape[3], -1)).permute(0, 3, 4, 1, 2)
            assert level.shape == other.shape and level.std() > 0.01
            # Another order of up to 4608 terms changes the output of a layer by some sqrt(4608) * 6e-8 = 4e-6 of it.
            torch.testing.assert_close(level, other, rtol=0, atol=1e-5 * other.abs().max().item())
    for anchors, others in zip(mine.anchors, theirs.anchor_generator(features), strict=True):
        assert torch.equal(anchors.tensor, others.tensor)
    assert ours.postprocessor.score_thresh == theirs.test_score_thresh
    assert ours.postprocessor.topk_candidates == theirs.test_topk_candidates
    assert ours.postprocessor.nms_thresh == theirs.test_nms_thresh
    assert ours.postprocessor.max_detections_per_image == theirs.max_detections_per_image


def python2_pickle(value):
    """The bytes that Python 2's cPickle writes with protocol 2 and numpy 1: text and data are byte strings."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value):
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, str):
        return _python2(value.encode("latin1"))
    if isinstance(value, bytes):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    assert isinstance(value, np.ndarray) and value.dtype.byteorder == "="
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + b"U\x01btR"
    dtype = (
        b"cnumpy\ndtype\n("
        + _python2(value.dtype.str[1:])
        + b"K\x00K\x01tR(K\x03U\x01<NNN"
        + 2 * _python2(-1)
        + b"K\x00tb"
    )
    return empty + b"(K\x01" + _python2(value.shape) + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"


@pytest.fixture(scope="session")
def report():
    """report(title, row, ...) prints a table at the end, for who reads the output (-s)."""
    tables = {}

    def add(title, *row):
        tables.setdefault(title, []).append(row)

    yield add
    for title, rows in tables.items():
        print(f"\n\n{title}")
        width = max(len(str(row[0])) for row in rows)
        for first, *rest in rows:
            print(f"  {first!s:{width}s}  {'  '.join(map(str, rest))}")
