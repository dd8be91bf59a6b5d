"""The box loss against closed forms in float64."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from retina_plugin.modeling import BoxRegressionLoss

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(count):
    corner = torch.rand(count, 2) * 50
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 40], dim=1)


def encode(anchors, boxes):
    a, b = anchors.double().numpy(), boxes.double().numpy()
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    shift = ((b[:, :2] + b[:, 2:]) / 2 - (a[:, :2] + a[:, 2:]) / 2) / size_a
    return np.concatenate([shift, np.log(size_b / size_a)], axis=1) * WEIGHTS


def iou_losses(a, b):
    """1 - IoU and its penalties (GIoU, DIoU, CIoU) of two boxes, from their definitions."""
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])  # noqa: E731
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    union = area(a) + area(b) - inter
    hull = [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
    centre = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    diagonal = (hull[2] - hull[0]) ** 2 + (hull[3] - hull[1]) ** 2
    iou = inter / union
    angle = math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))
    v = 4 / math.pi**2 * angle**2
    diou = 1 - iou + centre / diagonal
    return {
        "giou": 1 - iou + (area(hull) - union) / area(hull),
        "diou": diou,
        "ciou": diou + v * v / (1 - iou + v),
    }


def make_loss(loss_type, beta=0.0):
    return BoxRegressionLoss(
        box2box_transform=Box2BoxTransform(weights=WEIGHTS), loss_type=loss_type, smooth_l1_beta=beta
    )


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_smooth_l1(beta):
    anchors, boxes, deltas = random_boxes(50), random_boxes(50), torch.randn(50, 4) * 5
    error = np.abs(deltas.double().numpy() - encode(anchors, boxes))
    expected = np.where(error < beta, 0.5 * error**2 / beta if beta else 0, error - 0.5 * beta).sum()
    assert make_loss("smooth_l1", beta)(deltas, anchors, boxes).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["giou", "diou", "ciou"])
def test_iou_losses(loss_type):
    anchors, boxes, predicted = random_boxes(50), random_boxes(50), random_boxes(50)
    deltas = torch.from_numpy(encode(anchors, predicted)).float()
    pairs = zip(predicted.tolist(), boxes.tolist())
    expected = sum(iou_losses(p, b)[loss_type] for p, b in pairs)
    assert make_loss(loss_type)(deltas, anchors, boxes).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_no_positive_anchor_gives_zero_with_gradient(loss_type):
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = make_loss(loss_type)(deltas, torch.zeros(0, 4), torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32


def test_half_precision_is_computed_in_float32():
    anchors, boxes, deltas = random_boxes(50), random_boxes(50), torch.randn(50, 4).bfloat16()
    loss = make_loss("smooth_l1")(deltas, anchors, boxes)
    assert loss.dtype == torch.float32
    expected = np.abs(deltas.double().numpy() - encode(anchors, boxes)).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="iou.*giou"):
        make_loss("iou")
    with pytest.raises(ValueError, match="BETA"):
        make_loss("smooth_l1", -1.0)
