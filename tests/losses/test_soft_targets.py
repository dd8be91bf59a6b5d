"""Soft targets: the own class of an anchor with score s counts s as a positive and 1 - s as a negative."""

import math

import pytest
import torch
from torch.nn import functional as F

from retina_plugin.losses import SigmoidCrossEntropyLoss, Targets

from .closed_forms import FAMILY, TYPICAL, call_module, closed_form, random_case, value_and_gradient

ALPHAS = [None, 0.25, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]]


def random_scores(labels, num_classes=7):
    """In [0, 1], both ends included; NaN where nothing may read them."""
    scores = torch.rand(labels.shape)
    scores[torch.rand(labels.shape) < 0.1] = 0.0
    scores[torch.rand(labels.shape) < 0.1] = 1.0
    return torch.where((labels >= 0) & (labels < num_classes), scores, math.nan)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name, settings", TYPICAL)
def test_value_and_gradient_are_the_closed_form(name, settings, alpha, assert_close):
    logits, labels = random_case(margin=settings.get("margin"))
    scores = random_scores(labels)
    module = FAMILY[name].module(alpha=alpha, **settings)
    loss, gradient = value_and_gradient(call_module(module, [logits], [labels], 3.0, scores=[scores]), logits)
    value, expected = closed_form(name, logits, labels, alpha=alpha, scores=scores, **settings)
    assert_close(f"{name}, soft targets: value", loss, value.sum() / 3, tolerance=2e-6)
    assert_close(f"{name}, soft targets: gradient", gradient, expected / 3, tolerance=2e-6)


def test_cross_entropy_is_torchs():
    logits, labels = random_case()
    scores, counted = random_scores(labels), labels >= 0
    targets = F.one_hot(labels[counted], 8)[:, :7] * torch.nan_to_num(scores[counted])[:, None]
    expected = F.binary_cross_entropy_with_logits(logits[counted], targets, reduction="sum")
    expected, expected_gradient = value_and_gradient(expected, logits)
    loss = call_module(SigmoidCrossEntropyLoss(), [logits], [labels], scores=[scores])
    loss, gradient = value_and_gradient(loss, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name, settings", TYPICAL)
def test_scores_of_one_are_hard_targets(name, settings, alpha):
    logits, labels = random_case()
    module = FAMILY[name].module(alpha=alpha, **settings)
    hard, hard_gradient = value_and_gradient(call_module(module, [logits], [labels]), logits)
    soft = call_module(module, [logits], [labels], scores=[torch.ones(labels.shape)])
    soft, soft_gradient = value_and_gradient(soft, logits)
    if module.fused:  # soft targets have no kernel
        torch.testing.assert_close(soft, hard, rtol=2e-6, atol=0)
        torch.testing.assert_close(soft_gradient, hard_gradient, rtol=1e-4, atol=1e-6)
    else:
        assert torch.equal(soft, hard) and torch.equal(soft_gradient, hard_gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = random_case()
    half, scores = logits.detach().to(dtype), torch.rand(labels.shape).to(dtype)
    module = FAMILY["focal"].module()
    expected = call_module(module, [half.float()], [labels], scores=[scores.float()])
    loss = call_module(module, [half], [labels], scores=[scores])
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_targets_by_level_are_views_in_the_order_of_the_anchors():
    logits = [torch.empty(2, 3, 4, 5, 7), torch.empty(2, 1, 2, 5, 7)]
    labels, scores = torch.arange(2 * 70).view(2, 70), torch.rand(2, 70)
    targets = Targets(labels, torch.zeros(2, 70, 4), scores)
    for whole, levels in ((labels, targets.labels_by_level(logits)), (scores, targets.scores_by_level(logits))):
        assert [x.shape for x in levels] == [x.shape[:-1] for x in logits]
        assert torch.equal(levels[0].flatten(1), whole[:, :60]) and torch.equal(levels[1].flatten(1), whole[:, 60:])
        assert all(x.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for x in levels)
    assert Targets(labels, torch.zeros(2, 70, 4)).scores_by_level(logits) is None


def test_positives_are_the_anchors_with_a_class():
    targets = Targets(torch.tensor([[-1, 0, 2, 3], [3, 3, 1, -1]]), torch.zeros(2, 4, 4))
    assert targets.is_positive(3).tolist() == [[False, True, True, False], [False, False, True, False]]
    count = targets.num_positives(3)
    assert count.shape == () and count.dtype == torch.int64 and count == 3
