"""The anchors that coverage is measured with are those of the model."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from retina_plugin import ConfigError
from retina_plugin.modeling.anchor_coverage import AnchorCoverage

from ..engine.small import make_cfg, make_image


@pytest.mark.parametrize("size", [(64, 64), (50, 97)])
def test_anchors_and_targets_are_those_of_the_model(seed, size):
    cfg = make_cfg()
    model, image = build_model(cfg), make_image(seed, 0, 6, size)
    anchors, targets = AnchorCoverage(cfg).assign(image["instances"])
    raw, expected = model.raw_predictions([image]), model.assign([image])
    assert all(torch.equal(ours.tensor, theirs.tensor) for ours, theirs in zip(anchors, raw.anchors))
    assert torch.equal(targets.labels, expected.labels)
    positive = expected.is_positive(3)
    assert positive.any() and torch.equal(targets.boxes[positive], expected.boxes[positive])


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_nearest_center_is_that_of_all_anchors(seed, offset):
    cfg = make_cfg("MODEL.ANCHOR_GENERATOR.OFFSET", offset)
    coverage, image = AnchorCoverage(cfg), make_image(seed, 0, 20, (70, 90))
    anchors, _ = coverage.assign(image["instances"])
    boxes = image["instances"].gt_boxes
    offsets = coverage.nearest_offsets(boxes.tensor.numpy(), np.array([[70, 90]] * 20))
    for level, ours in zip(anchors, torch.from_numpy(offsets)):
        apart = (boxes.get_centers()[:, None] - level.get_centers()).abs()  # (G, anchors, 2)
        torch.testing.assert_close(ours, apart.amin(dim=1), atol=1e-4, rtol=0)


def test_the_level_is_that_of_the_best_anchor():
    coverage = AnchorCoverage(make_cfg("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]))
    boxes = Boxes(torch.tensor([[24.0 - s / 2, 40 - s / 2, 24 + s / 2, 40 + s / 2] for s in (16.0, 32.0, 40.0)]))
    boxes.tensor[2] += 8  # at a center of the second level, (32, 48)
    iou, level = coverage.best(boxes.tensor.numpy(), np.array([[96, 96]] * 3))
    # 32 of p4 is centered at (16 or 32, 32 or 48): 8 to the side and 8 up or down, 24 * 24 / (2 * 1024 - 576).
    assert level.tolist() == [0, 1, 1]
    np.testing.assert_allclose(iou, [1, 576 / 1472, 1024 / 1600], rtol=1e-6)


def test_a_level_that_the_backbone_lacks_and_a_class_that_the_model_lacks(seed):
    with pytest.raises(ConfigError, match=r"IN_FEATURES has \['p9'\], but the backbone makes"):
        AnchorCoverage(make_cfg("MODEL.RETINANET.IN_FEATURES", ["p3", "p9"]))
    image = make_image(seed, 0, 3)
    image["instances"].gt_classes[1] = 3
    with pytest.raises(ValueError, match=r"the model has classes 0..2"):
        AnchorCoverage(make_cfg()).assign(image["instances"])
