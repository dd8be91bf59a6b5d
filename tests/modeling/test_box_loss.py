"""The box loss equals closed forms in float64."""

import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from retina_plugin import add_retina_config
from retina_plugin.modeling import BoxRegressionLoss, DeltaXYWHCoder, build_box_loss

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
    center = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    diagonal = (hull[2] - hull[0]) ** 2 + (hull[3] - hull[1]) ** 2
    iou = inter / union
    angle = math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))
    v = 4 / math.pi**2 * angle**2
    diou = 1 - iou + center / diagonal
    return {
        "giou": 1 - iou + (area(hull) - union) / area(hull),
        "diou": diou,
        "ciou": diou + v * v / (1 - iou + v),
    }


ALL = torch.ones(1, 50, dtype=torch.bool)


def make_loss(loss_type, beta=0.0):
    return BoxRegressionLoss(box_coder=DeltaXYWHCoder(WEIGHTS), loss_type=loss_type, smooth_l1_beta=beta)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_smooth_l1(beta):
    anchors, boxes, deltas = random_boxes(50), random_boxes(50), torch.randn(50, 4) * 5
    error = np.abs(deltas.double().numpy() - encode(anchors, boxes))
    expected = np.where(error < beta, 0.5 * error**2 / beta if beta else 0, error - 0.5 * beta).sum()
    loss = make_loss("smooth_l1", beta)(deltas[None], anchors, boxes[None], ALL)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["giou", "diou", "ciou"])
def test_iou_losses(loss_type):
    anchors, boxes, predicted = random_boxes(50), random_boxes(50), random_boxes(50)
    deltas = torch.from_numpy(encode(anchors, predicted)).float()
    pairs = zip(predicted.tolist(), boxes.tolist())
    expected = sum(iou_losses(p, b)[loss_type] for p, b in pairs)
    loss = make_loss(loss_type)(deltas[None], anchors, boxes[None], ALL)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_other_anchors_add_exactly_nothing(loss_type, share):
    """Loss and gradient are 0 for any deltas and boxes of anchors that are not positive, also without positive ones."""
    loss = make_loss(loss_type)
    anchors, boxes = random_boxes(50), torch.stack([random_boxes(50), random_boxes(50)])
    deltas, positive = torch.randn(2, 50, 4), torch.rand(2, 50) < share
    expected = sum(loss(d[p][None], anchors[p], b[p][None], p[p][None]) for d, b, p in zip(deltas, boxes, positive))
    deltas[~positive], boxes[~positive] = math.nan, -math.inf
    result = loss(deltas.requires_grad_(), anchors, boxes, positive)
    result.backward()
    assert result.item() == pytest.approx(expected.item(), rel=1e-5) and result.dtype == torch.float32
    assert (deltas.grad[~positive] == 0).all() and (deltas.grad[positive] != 0).any(dim=-1).all()


def test_half_precision_is_computed_in_float32():
    anchors, boxes, deltas = random_boxes(50), random_boxes(50), torch.randn(50, 4).bfloat16()
    loss = make_loss("smooth_l1")(deltas[None], anchors, boxes[None], ALL)
    assert loss.dtype == torch.float32
    expected = np.abs(deltas.double().numpy() - encode(anchors, boxes)).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


class SidesCoder:
    """Encodes distances of the sides from the anchor's center, in 16 pixels: the code of an anchor itself is not 0."""

    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])

    def encode(self, boxes, anchors):
        return (boxes - self.center(anchors)) * self.signs / 16

    def decode(self, deltas, anchors):
        return self.center(anchors) + deltas * 16 * self.signs

    def center(self, anchors):
        return ((anchors[..., :2] + anchors[..., 2:]) / 2).repeat(*[1] * (anchors.dim() - 1), 2)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_a_foreign_box_coder(loss_type):
    anchors, boxes, predicted = random_boxes(50), random_boxes(50), random_boxes(50)
    positive = torch.rand(1, 50) < 0.5
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    deltas = torch.cat([center - predicted[:, :2], predicted[:, 2:] - center], dim=1) / 16
    if loss_type == "smooth_l1":
        each = ((predicted - boxes) / 16).abs().sum(dim=1).tolist()
    else:
        each = [iou_losses(p, b)[loss_type] for p, b in zip(predicted.tolist(), boxes.tolist())]
    expected = sum(value for value, counted in zip(each, positive[0].tolist()) if counted)
    deltas.requires_grad_()
    loss = BoxRegressionLoss(box_coder=SidesCoder(), loss_type=loss_type)(deltas[None], anchors, boxes[None], positive)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert (deltas.grad[~positive[0]] == 0).all() and (deltas.grad[positive[0]] != 0).any(dim=1).all()


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_the_key_chooses_the_loss(loss_type):
    cfg, coder = get_cfg(), SidesCoder()
    add_retina_config(cfg)
    cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = loss_type
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = 0.25
    loss = build_box_loss(cfg, coder)
    assert loss.loss_type == loss_type and loss.box_coder is coder
    assert loss_type != "smooth_l1" or loss.smooth_l1_beta == 0.25


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="iou.*giou"):
        make_loss("iou")
    with pytest.raises(ValueError, match="BETA"):
        make_loss("smooth_l1", -1.0)
