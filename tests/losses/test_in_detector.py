"""The losses inside the detector: the boxes that they are offered, and a training step with each of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from retina_plugin import add_retina_config
from retina_plugin.losses import CLASSIFICATION_LOSS_REGISTRY

BASE = str(Path(__file__).parents[2] / "configs" / "Base-RetinaNet.yaml")


def make_model(*opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.merge_from_file(BASE)
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
        + ["MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.FPN.OUT_CHANNELS", 32]
        + ["MODEL.PIXEL_STD", [58.0, 57.0, 57.0], *opts]
    )
    return build_model(cfg)


def make_batch(*counts):
    """Images of 64 x 80 pixels with so many boxes each."""
    batch = []
    for count in counts:
        corner = torch.rand(count, 2) * 30
        instances = Instances((64, 80))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + 10 + torch.rand(count, 2) * 30], dim=1))
        instances.gt_classes = torch.randint(4, (count,))
        batch.append({"image": torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8), "instances": instances})
    return batch


def decode(anchors, deltas, weights):
    """(dx, dy, dw, dh) to XYXY in float64 (section 4, after R-CNN), growth limited to 1000 / 16."""
    size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., 2:] + anchors[..., :2]) / 2 + deltas[..., :2] / weights[:2] * size
    size = size * np.exp(np.minimum(deltas[..., 2:] / weights[2:], np.log(1000 / 16)))
    return np.concatenate([center - size / 2, center + size / 2], axis=-1)


class RecordBoxes(nn.Module):
    def forward(self, logits, targets, context, normalizer):
        self.logits, self.labels, self.boxes = logits, targets.labels_by_level(logits), context.decode_boxes()
        return 0 * sum(x.sum() for x in logits)


@pytest.mark.parametrize(
    "weights, autocast",
    [((1.0, 1.0, 1.0, 1.0), False), ((10.0, 10.0, 5.0, 5.0), False), ((10.0, 10.0, 5.0, 5.0), True)],
)
def test_a_loss_is_offered_the_predicted_boxes(weights, autocast):
    model = make_model("MODEL.RETINANET.BBOX_REG_WEIGHTS", weights)
    model.classification_loss = RecordBoxes()
    with torch.no_grad():  # shifts and sizes of every kind; some dw, dh beyond log(1000 / 16) = 4.1
        model.head.bbox_pred.bias.copy_(torch.randn(9, 4).mul(torch.tensor(weights) * 2).flatten())
        model.head.bbox_pred.bias.view(9, 4)[0, 2:] = 6 * torch.tensor(weights[2:])
    seen = {}
    model.anchor_generator.register_forward_hook(lambda _, __, anchors: seen.update(anchors=anchors))
    model.head.register_forward_hook(lambda _, __, outputs: seen.update(deltas=outputs[1]))
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        model(make_batch(2, 0))
    recorded = model.classification_loss
    assert [len(x) for x in (recorded.boxes, recorded.logits, recorded.labels)] == [5, 5, 5]
    for level in range(5):
        boxes, deltas = recorded.boxes[level], seen["deltas"][level]
        n, _, h, w = deltas.shape
        assert deltas.dtype == (torch.bfloat16 if autocast else torch.float32)
        assert boxes.dtype == torch.float32 and not boxes.requires_grad
        assert boxes.shape[:-1] == recorded.logits[level].shape[:-1] == recorded.labels[level].shape == (n, h, w, 9)
        deltas = deltas.detach().double().numpy().reshape(n, 9, 4, h, w).transpose(0, 3, 4, 1, 2)
        anchors = seen["anchors"][level].tensor.double().numpy().reshape(1, h, w, 9, 4)
        expected = decode(anchors, deltas, np.array(weights))
        growth = (expected[..., 2:] - expected[..., :2]) / (anchors[..., 2:] - anchors[..., :2])
        assert growth.max() == pytest.approx(1000 / 16) and growth.min() < 1
        scale = np.maximum(np.abs(expected), np.abs(anchors)).max(axis=-1, keepdims=True)
        assert (np.abs(boxes.double().numpy() - expected) / scale).max() < 2e-6


@pytest.mark.parametrize("name", [name for name, _ in CLASSIFICATION_LOSS_REGISTRY])
@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_every_loss_trains_with_and_without_boxes(name, counts):
    # Background starts at a p_t of 0.99, above the hinge loss's default margin.
    margin = ["MODEL.RETINANET.HINGE_MARGIN", 1.0] if name == "hinge" else []
    model = make_model("MODEL.RETINANET.CLS_LOSS", name, *margin)
    with EventStorage():
        losses = model(make_batch(*counts))
    sum(losses.values()).backward()
    assert losses["loss_cls"] > 0
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert (model.head.cls_score.weight.grad != 0).any() and (model.head.cls_score.bias.grad != 0).any()
    assert (model.head.bbox_pred.bias.grad != 0).any() == (sum(counts) > 0)


@pytest.mark.parametrize("name", ["ohem", "ohem_1to3"])
def test_no_gradient_of_the_class_loss_reaches_the_boxes(name):
    model = make_model("MODEL.RETINANET.CLS_LOSS", name)
    with EventStorage():
        model(make_batch(2, 1))["loss_cls"].backward()
    assert model.head.cls_score.weight.grad is not None
    assert all(p.grad is None for module in (model.head.bbox_subnet, model.head.bbox_pred) for p in module.parameters())


def test_hinge_on_background_alone_starts_at_exactly_zero():
    """p_t of background starts at 0.99; the gradient is zero, and there: DistributedDataParallel waits for it."""
    model = make_model("MODEL.RETINANET.CLS_LOSS", "hinge")
    with EventStorage():
        loss = model(make_batch(0, 0))["loss_cls"]
    loss.backward()
    assert loss == 0 and (model.head.cls_score.weight.grad == 0).all()
