"""Box coders: equal to Detectron2's, and one object for box loss and post-processing."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes

from retina_plugin import add_retina_config
from retina_plugin.modeling import (
    BOX_CODER_REGISTRY,
    DeltaXYWHCoder,
    Postprocessor,
    build_box_coder,
    build_box_loss,
)

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(count):
    corner = torch.rand(count, 2) * 50
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 40], dim=1)


def test_encodes_exactly_as_detectron2():
    anchors, boxes = random_boxes(500), random_boxes(500)
    expected = Box2BoxTransform(weights=WEIGHTS).get_deltas(anchors, boxes)
    assert torch.equal(DeltaXYWHCoder(WEIGHTS).encode(boxes, anchors), expected)


def test_anchors_expand_to_a_batch():
    coder, anchors = DeltaXYWHCoder(WEIGHTS), random_boxes(20)
    boxes, deltas = torch.stack([random_boxes(20), random_boxes(20)]), torch.randn(2, 20, 4) * 3
    for i in range(2):
        assert torch.equal(coder.encode(boxes, anchors)[i], coder.encode(boxes[i], anchors))
        expected = Box2BoxTransform(weights=WEIGHTS).apply_deltas(deltas[i], anchors)
        assert torch.equal(coder.decode(deltas, anchors)[i], expected)


def test_decodes_what_it_encodes():
    coder, anchors, boxes = DeltaXYWHCoder(WEIGHTS), random_boxes(200), random_boxes(200)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_decoded_in_float32(dtype):
    coder, anchors, deltas = DeltaXYWHCoder(), random_boxes(20), torch.randn(20, 4).to(dtype)
    boxes = coder.decode(deltas, anchors)
    assert boxes.dtype == torch.float32 and torch.equal(boxes, coder.decode(deltas.float(), anchors))


def test_no_boxes():
    coder, none = DeltaXYWHCoder(), torch.zeros(0, 4)
    assert coder.encode(none, none).shape == coder.decode(none, none).shape == (0, 4)


class CornerCoder:
    """The offset of each corner, in anchor sizes."""

    def encode(self, boxes, anchors):
        return (boxes - anchors) / (anchors[..., 2:] - anchors[..., :2]).repeat(*[1] * (anchors.dim() - 1), 2)

    def decode(self, deltas, anchors):
        return anchors + deltas * (anchors[..., 2:] - anchors[..., :2]).repeat(*[1] * (anchors.dim() - 1), 2)


def corners(cfg):
    return CornerCoder()


@pytest.fixture(params=["delta_xywh", "corners"])
def cfg(request, monkeypatch):
    monkeypatch.setattr(BOX_CODER_REGISTRY, "_obj_map", dict(BOX_CODER_REGISTRY))
    BOX_CODER_REGISTRY.register(corners)
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.MODEL.RETINANET.BOX_CODER, cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS = request.param, WEIGHTS
    return cfg


def test_box_loss_and_postprocessor_share_the_code(cfg):
    """Deltas computed in numpy for the ground truth have a box loss of 0 and decode to the ground truth."""
    coder = build_box_coder(cfg)
    # Far apart, so that NMS keeps all.
    anchors = torch.tensor([[x, y, x + 30.0, y + 20.0] for x in (0.0, 100.0) for y in (0.0, 100.0)])
    boxes = anchors + torch.rand(4, 4) * torch.tensor([8.0, 8.0, 20.0, 20.0])
    a, b = anchors.double().numpy(), boxes.double().numpy()
    if cfg.MODEL.RETINANET.BOX_CODER == "corners":
        deltas = (b - a) / [30, 20, 30, 20]
    else:
        size = b[:, 2:] - b[:, :2]
        shift = (b[:, :2] + b[:, 2:] - a[:, :2] - a[:, 2:]) / 2 / [30, 20]
        deltas = np.concatenate([10 * shift, 5 * np.log(size / [30, 20])], axis=1)
    deltas = torch.from_numpy(deltas).float()
    positive = torch.ones(1, 4, dtype=torch.bool)
    for loss_type in ("smooth_l1", "giou"):
        cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = loss_type
        loss = build_box_loss(cfg, coder)
        assert loss(deltas[None], anchors, boxes[None], positive).item() == pytest.approx(0, abs=1e-3)
        assert loss(deltas[None] + 1, anchors, boxes[None], positive).item() > 1
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(1, 1, 1, 4, 1)
    (found,) = Postprocessor(cfg, coder)([Boxes(anchors)], [logits], [deltas.view(1, 1, 1, 4, 4)], [(200, 200)])
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=1e-5, atol=1e-4)
