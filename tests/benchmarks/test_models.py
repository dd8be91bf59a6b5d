"""All detectors have the same lively weights, torchvision's under its own names and in its own order."""

import pytest
import torch
from detectron2.structures import Boxes
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from benchmarks import inputs, models, torchvision_model
from benchmarks.detectors import convolutions


@pytest.fixture(scope="module")
def pair():
    """The plugin's and Detectron2's own."""
    configs = models.plugin_config("cpu", models.SMALL), models.detectron2_config("cpu", models.SMALL)
    return [models.build(cfg, models.weights(models.SMALL)).eval() for cfg in configs]


def test_same_weights(pair):
    ours, theirs = (model.state_dict() for model in pair)
    assert set(ours) - set(theirs) == {"loss_normalizer.ema"}
    assert ours["loss_normalizer.ema"] == 100, "not left undefined"
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        assert torch.isfinite(value).all(), name


def test_weights_depend_on_no_state_of_the_process():
    models.weights.cache_clear()
    first = models.weights(models.SMALL)
    models.weights.cache_clear()
    torch.randn(10)
    for name, value in models.weights(models.SMALL).items():
        assert torch.equal(value, first[name]), name


@torch.no_grad()
def test_predictions_are_lively(pair):
    _, theirs = pair
    batch = inputs.batch(160, images=2, boxes=1, num_classes=5)
    features = theirs.backbone(theirs.preprocess_image(batch).tensor)
    assert all(0.5 < features[level].std() < 2 for level in ("p3", "p4", "p5", "p6", "p7"))
    predictions = convolutions(theirs, theirs.preprocess_image(batch).tensor)
    logits, deltas = (torch.cat([x.flatten() for x in half]) for half in (predictions[:5], predictions[5:]))
    assert 0.5 < logits.std() < 2
    assert 0.1 < deltas.std() < 0.9
    assert 1e-5 < (logits.sigmoid() > 0.05).float().mean() < 0.05, "a few candidates of many"
    assert all(len(output["instances"]) > 0 for output in theirs(batch))


@torch.no_grad()
def test_torchvisions_backbone_computes_the_same():
    """R-50 with the stride where torchvision has it. P6 and P7 are its own."""
    size = 320  # smaller ones have a P7 of few numbers
    cfg, state = models.detectron2_config("cpu", ("MODEL.RESNETS.STRIDE_IN_1X1", False)), models.weights()
    theirs, torchvisions = models.build(cfg, state).eval(), torchvision_model.build(cfg, state, size).eval()
    batch = inputs.batch(size, images=1, boxes=1, num_classes=80)
    features = theirs.backbone(theirs.preprocess_image(batch).tensor)
    images = [x["image"].float() / 255 for x in batch]
    same_features = torchvisions.backbone(torchvisions.transform(images)[0].tensors)
    assert list(same_features) == ["0", "1", "2", "p6", "p7"]
    for level, value in zip(("p3", "p4", "p5"), same_features.values()):
        assert (value - features[level]).abs().max() < 1e-3 * features[level].abs().max()
    assert all(0.5 < same_features[level].std() < 2 for level in ("p6", "p7"))


@torch.no_grad()
def test_torchvisions_head_predicts_the_same_for_the_same_anchors(pair):
    """Which anchors are the same is seen from where they lie: torchvision orders and rounds them in its own way."""
    _, theirs = pair
    size = 96
    torchvisions = torchvision_model.build(
        models.detectron2_config("cpu", models.SMALL), models.weights(models.SMALL), size
    ).eval()
    features = [torch.randn(1, 256, *shape) for shape in inputs.level_shapes(size)]
    outputs = torchvisions.head(features)
    images = ImageList(torch.empty(1, 3, *inputs.picture_shape(size)), [inputs.picture_shape(size)])
    anchors = torchvisions.anchor_generator(images, features)[0]

    logits, deltas = theirs._transpose_dense_predictions(theirs.head(features), [5, 4])
    their_anchors = Boxes.cat(theirs.anchor_generator(features)).tensor
    iou, same = box_iou(anchors, their_anchors).max(dim=1)
    exact = iou > 0.9  # at the upper levels, torchvision has other strides for images that they do not divide
    assert exact.float().mean() > 0.9
    assert len(same[exact].unique()) == exact.sum()
    for ours, expected in ((outputs["cls_logits"], logits), (outputs["bbox_regression"], deltas)):
        expected = torch.cat(expected, dim=1)[0, same[exact]]
        assert (ours[0, exact] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_torchvisions_p6_depends_on_no_state_of_the_process():
    cfg, state = models.detectron2_config("cpu", models.SMALL), models.weights(models.SMALL)
    first, second = (torchvision_model.build(cfg, state, 64).backbone.fpn.extra_blocks.p6 for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert first.weight.std() > 0 and torch.equal(first.bias, torch.zeros(256))


def test_torchvision_trains_what_detectron2_trains():
    cfg, state = models.detectron2_config("cpu", models.SMALL), models.weights(models.SMALL)
    trained = {name for name, p in models.build(cfg, state).named_parameters() if p.requires_grad}
    torchvisions = torchvision_model.build(cfg, state, 64)
    p6 = {f"backbone.fpn.extra_blocks.p6.{x}" for x in ("weight", "bias")}
    theirs = {name for name, p in torchvisions.named_parameters() if p.requires_grad} - p6
    assert theirs == set(torchvision_model.renamed({k: v for k, v in state.items() if k in trained}))
