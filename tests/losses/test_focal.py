"""Focal loss against fvcore, its limits and the figures of the paper's text."""

import math

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss as fvcore_focal_loss
from torch.nn import functional as F

from retina_plugin.losses import SigmoidFocalLoss, sigmoid_cross_entropy_loss, sigmoid_focal_loss

from .closed_forms import closed_form, random_case, value_and_gradient


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (None, 1.5)])
def test_equals_fvcore_on_one_hot_targets(alpha, gamma):
    logits, labels = random_case()
    counted = labels >= 0
    targets = F.one_hot(labels[counted], 8)[:, :7].float()
    expected = fvcore_focal_loss(
        logits[counted], targets, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="sum"
    )
    expected, expected_gradient = value_and_gradient(expected, logits)
    loss, gradient = value_and_gradient(sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_easy_examples_keep_the_precision_that_a_difference_loses():
    """1 - p_t of an easy example cancels in fp32 where it is computed as a difference; here it is not."""
    logits = torch.full((100, 3), -10.0)
    labels = torch.full((100,), 3)
    value = closed_form("focal", logits, labels, alpha=0.25, gamma=2.0)[0].sum()
    by_difference = fvcore_focal_loss(logits, torch.zeros_like(logits), alpha=0.25, gamma=2.0, reduction="sum")
    assert sigmoid_focal_loss(logits, labels).item() == pytest.approx(value, rel=1e-6, abs=0)
    assert by_difference.item() != pytest.approx(value, rel=1e-3, abs=0)


@pytest.mark.parametrize("alpha", [None, 0.75, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
def test_gamma_zero_is_cross_entropy(alpha):
    logits, labels = random_case()
    expected, expected_gradient = value_and_gradient(sigmoid_cross_entropy_loss(logits, labels, alpha=alpha), logits)
    loss, gradient = value_and_gradient(sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=0.0), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=0)


def times_less_than_cross_entropy(x_t):
    logits, labels = torch.tensor([[x_t]]), torch.tensor([0])
    cross_entropy = sigmoid_focal_loss(logits, labels, alpha=None, gamma=0.0)
    return (cross_entropy / sigmoid_focal_loss(logits, labels, alpha=None, gamma=2.0)).item()


@pytest.mark.parametrize("p_t, factor, tolerance", [(0.9, 100, 1e-4), (0.968, 1000, 0.03), (0.5, 4, 1e-4)])
def test_factors_of_the_text(p_t, factor, tolerance):
    """Section 3.2: at gamma = 2, p_t = 0.9 costs 100 times less than CE, 0.968 about 1000, 0.5 four times."""
    assert times_less_than_cross_entropy(math.log(p_t / (1 - p_t))) == pytest.approx(factor, rel=tolerance)


def test_at_most_four_times_less_than_cross_entropy_up_to_one_half():
    """Section 3.2: "at most 4x for p_t <= .5" at gamma = 2."""
    factors = [times_less_than_cross_entropy(x_t) for x_t in [0.0, *(-10 * torch.rand(100)).tolist()]]
    assert 1 <= min(factors) and max(factors) == factors[0] == pytest.approx(4)


@pytest.mark.parametrize("gamma", [-1.0, -1e-6, math.nan, math.inf])
def test_gamma_out_of_range_is_refused(gamma):
    logits, labels = random_case()
    for build in (SigmoidFocalLoss, lambda gamma: sigmoid_focal_loss(logits, labels, gamma=gamma)):
        with pytest.raises(ValueError, match="gamma must be a finite number >= 0, got"):
            build(gamma=gamma)
