"""Focal loss against float64 closed forms, fvcore and the figures of the paper's text."""

import math

import numpy as np
import pytest
import torch
from fvcore.nn import sigmoid_focal_loss as fvcore_focal_loss
from torch.nn import functional as F

from retina_plugin.losses import CLASSIFICATION_LOSS_REGISTRY, SigmoidFocalLoss, sigmoid_focal_loss

PARAMETERS = [(0.25, 2.0), (0.75, 0.5), (None, 1.0), (0.5, 0.0), (0.9, 5.0), (0.1, 0.3)]


def random_case(num_anchors=400, num_classes=7, scale=4.0):
    logits = torch.randn(num_anchors, num_classes) * scale
    labels = torch.randint(-1, num_classes + 1, (num_anchors,))
    return logits.requires_grad_(), labels


def closed_form(logits, labels, alpha, gamma):
    """Value and gradient in float64 from the paper's formulas, y in {-1, 1}, elementwise."""
    x = logits.detach().double().numpy()
    y = np.where(labels.numpy()[:, None] == np.arange(x.shape[1]), 1.0, -1.0)
    p = 1 / (1 + np.exp(-x * y))
    a = 1.0 if alpha is None else np.where(y > 0, alpha, 1 - alpha)
    value = -a * (1 - p) ** gamma * np.log(p)
    gradient = a * y * (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1)
    counted = (labels.numpy() >= 0)[:, None]
    return (value * counted).sum(), gradient * counted


@pytest.mark.parametrize("alpha, gamma", PARAMETERS)
def test_value_and_gradient_are_the_closed_form(alpha, gamma):
    logits, labels = random_case()
    loss = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    loss.backward()
    value, gradient = closed_form(logits, labels, alpha, gamma)
    np.testing.assert_allclose(loss.item(), value, rtol=1e-5)
    np.testing.assert_allclose(logits.grad.double().numpy(), gradient, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (None, 1.5)])
def test_equals_fvcore_on_one_hot_targets(alpha, gamma):
    logits, labels = random_case()
    counted = labels >= 0
    targets = F.one_hot(labels[counted], 8)[:, :7].float()
    expected = fvcore_focal_loss(
        logits[counted], targets, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="sum"
    )
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, expected_gradient, rtol=1e-4, atol=1e-6)


def test_easy_examples_keep_their_precision():
    """1 - p_t of an easy example cancels in fp32 where it is computed as a difference; here it is not."""
    logits = torch.full((100, 3), -10.0)
    labels = torch.full((100,), 3)
    value, _ = closed_form(logits, labels, 0.25, 2.0)
    by_difference = fvcore_focal_loss(logits, torch.zeros_like(logits), alpha=0.25, gamma=2.0, reduction="sum")
    assert sigmoid_focal_loss(logits, labels).item() == pytest.approx(value, rel=1e-6, abs=0)
    assert by_difference.item() != pytest.approx(value, rel=1e-3, abs=0)


def test_gamma_zero_is_cross_entropy():
    logits, labels = random_case()
    counted = labels >= 0
    targets = F.one_hot(labels[counted], 8)[:, :7].float()
    expected = F.binary_cross_entropy_with_logits(logits[counted], targets, reduction="sum")
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels, alpha=None, gamma=0.0), expected)


@pytest.mark.parametrize("p_t, factor, tolerance", [(0.9, 100, 1e-4), (0.968, 1000, 0.03), (0.5, 4, 1e-4)])
def test_factors_of_the_text(p_t, factor, tolerance):
    """Section 3.2: at gamma = 2, p_t = 0.9 costs 100 times less than CE, 0.968 about 1000, 0.5 four times."""
    logits, labels = torch.tensor([[math.log(p_t / (1 - p_t))]]), torch.tensor([0])
    cross_entropy = sigmoid_focal_loss(logits, labels, alpha=None, gamma=0.0)
    focal = sigmoid_focal_loss(logits, labels, alpha=None, gamma=2.0)
    assert (cross_entropy / focal).item() == pytest.approx(factor, rel=tolerance)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_ignored_anchors_add_exactly_nothing(garbage):
    logits, labels = random_case()
    ignored = labels == -1
    assert ignored.any()
    expected = sigmoid_focal_loss(logits.detach()[~ignored], labels[~ignored])
    logits = logits.detach().clone()
    logits[ignored] = garbage
    logits.requires_grad_()
    loss = sigmoid_focal_loss(logits, labels)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).any()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_for_every_finite_logit(gamma, sign):
    logits = (sign * torch.logspace(-3, 4, 200)[:, None]).repeat(1, 2).requires_grad_()
    labels = torch.zeros(200, dtype=torch.int64)  # the first column positive, the second negative
    loss = sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=gamma)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradcheck_in_double(gamma):
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 3, -1, 1])
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, labels, alpha=0.3, gamma=gamma), (logits,), raise_exception=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = random_case(num_anchors=3000)
    half = logits.detach().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sigmoid_focal_loss(half, labels)
    assert loss.dtype == torch.float32
    value, _ = closed_form(half, labels, 0.25, 2.0)
    assert loss.item() == pytest.approx(value, rel=1e-5)


def test_module_sums_levels_of_any_memory_order():
    num_classes, anchors = 5, 3
    head_outputs = [torch.randn(2, anchors * num_classes, s, s + 1, requires_grad=True) for s in (6, 3, 1)]
    logits = [x.unflatten(1, (anchors, num_classes)).permute(0, 3, 4, 1, 2) for x in head_outputs]
    labels = [torch.randint(-1, num_classes + 1, x.shape[:4]) for x in logits]
    loss = SigmoidFocalLoss(alpha=0.25, gamma=2.0)(logits, labels)
    flat_logits = torch.cat([x.reshape(-1, num_classes) for x in logits]).detach()
    value, _ = closed_form(flat_logits, torch.cat([x.flatten() for x in labels]), 0.25, 2.0)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    loss.backward()
    assert all(x.grad.abs().sum() > 0 for x in head_outputs)


def test_no_anchor_counted_gives_zero_with_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.full((4,), -1))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("bad", [{"alpha": 1.5}, {"alpha": -0.1}, {"gamma": -1.0}, {"gamma": math.nan}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SigmoidFocalLoss(**bad)


def test_registered_under_its_name():
    assert "focal" in CLASSIFICATION_LOSS_REGISTRY
