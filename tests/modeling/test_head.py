"""The class and box subnets."""

import pytest
import torch
from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn

from retina_plugin.modeling import HeadOutput, RetinaNetHead, as_head_output
from retina_plugin.modeling.head import per_anchor

LEVELS = [ShapeSpec(channels=32, stride=2**i) for i in range(3, 6)]


def make_head(**overrides):
    arguments = {"input_shape": LEVELS, "num_classes": 5, "num_anchors": 3, "conv_dims": [32, 64]}
    return RetinaNetHead(**{**arguments, **overrides})


def test_output_shapes_and_separate_subnets():
    head = make_head()
    features = [torch.randn(2, 32, s, s + 1) for s in (8, 4, 2)]
    logits, deltas, extra = head(features)
    assert [x.shape for x in logits] == [(2, 15, s, s + 1) for s in (8, 4, 2)]
    assert [x.shape for x in deltas] == [(2, 12, s, s + 1) for s in (8, 4, 2)]
    assert extra == {}
    sum(x.sum() for x in logits).backward()
    assert head.cls_subnet[0].weight.grad is not None and head.bbox_subnet[0].weight.grad is None


@pytest.mark.parametrize("prior", [0.01, 0.1, 0.5])
def test_every_class_starts_at_the_prior(prior):
    head = make_head(prior_prob=prior)
    assert head.cls_score.bias.sigmoid().tolist() == pytest.approx([prior] * 15)
    assert (head.bbox_pred.bias == 0).all()
    weights = torch.cat([p.flatten() for n, p in head.named_parameters() if n.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    "norm, kind",
    [
        ("GN", nn.GroupNorm),
        ("BN", CycleBatchNormList),
        ("SyncBN", CycleBatchNormList),
        ("FrozenBN", FrozenBatchNorm2d),
    ],
)
def test_norms(norm, kind):
    head = make_head(norm=norm)
    for subnet in (head.cls_subnet, head.bbox_subnet):
        assert [type(m) for m in subnet] == [nn.Conv2d, kind, nn.ReLU] * 2
    if norm != "SyncBN":  # computes only on GPUs
        logits = head([torch.randn(2, 32, s, s) for s in (8, 4, 2)]).logits
        assert all(torch.isfinite(x).all() for x in logits)


def test_bn_keeps_statistics_of_each_level():
    head = make_head(norm="BN")
    head([torch.full((2, 32, 4, 4), float(level)) for level in range(3)])
    means = [norm.running_mean for norm in head.cls_subnet[1]]
    assert len(means) == 3 and not torch.equal(means[0], means[1]) and not torch.equal(means[1], means[2])


def test_no_tower():
    logits, deltas, _ = make_head(conv_dims=[])([torch.randn(1, 32, 4, 4)] * 3)
    assert logits[0].shape == (1, 15, 4, 4) and deltas[0].shape == (1, 12, 4, 4)


def test_a_pair_and_extras_as_head_output():
    logits, deltas = [torch.zeros(1, 15, 4, 4)], [torch.zeros(1, 12, 4, 4)]
    output = as_head_output((logits, deltas))
    assert output.logits is logits and output.deltas is deltas and output.extra == {}
    with pytest.raises(TypeError):
        output.extra["iou"] = logits  # all outputs without extras have this mapping
    output = as_head_output(HeadOutput(logits, deltas, {"iou": [torch.ones(1, 3, 4, 4)]}))
    assert list(output.extra) == ["iou"] and output.logits is logits


def test_per_anchor_is_a_view_in_the_order_of_the_anchors():
    generator = DefaultAnchorGenerator(sizes=[[16, 32]], aspect_ratios=[[0.5, 1, 2]], strides=[8], offset=0.0)
    height, width, num_anchors = 3, 4, 6
    anchors = generator([torch.zeros(1, 1, height, width)])[0].tensor
    # A prediction that contains its own position: channel a holds (a, y, x).
    prediction = torch.stack(
        torch.meshgrid(*(torch.arange(n).float() for n in (num_anchors, height, width)), indexing="ij")
    )
    prediction = prediction.transpose(0, 1).reshape(1, num_anchors * 3, height, width)
    view = per_anchor(prediction, 3)
    assert view.data_ptr() == prediction.data_ptr()
    assert view.shape == (1, height, width, num_anchors, 3)
    a, y, x = view.flatten(0, 3).unbind(1)
    torch.testing.assert_close((anchors[:, 0] + anchors[:, 2]) / 2, x * 8)
    torch.testing.assert_close((anchors[:, 1] + anchors[:, 3]) / 2, y * 8)
    sizes = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(sizes, sizes[:num_anchors][a.long()])


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"prior_prob": 0.0}, "prior_prob"),
        ({"prior_prob": 1.0}, "prior_prob"),
        ({"norm": "GN", "conv_dims": [48]}, "32 groups"),
        ({"norm": "NB"}, "NB"),
        ({"input_shape": [ShapeSpec(channels=32), ShapeSpec(channels=16)]}, "channels"),
    ],
)
def test_invalid_settings_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        make_head(**bad)
