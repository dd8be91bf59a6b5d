"""FL* against fvcore's, which knows no shift, and its limit."""

import math

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss_star, sigmoid_focal_loss_star_jit
from torch.nn import functional as F

from retina_plugin.losses import SigmoidFocalStarLoss, sigmoid_cross_entropy_loss
from retina_plugin.losses import sigmoid_focal_star_loss as focal_star_loss

from .closed_forms import random_case, value_and_gradient


@pytest.mark.parametrize("fvcore_loss", [sigmoid_focal_loss_star, sigmoid_focal_loss_star_jit])
@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (None, 4.0), (0.9, 0.3)])
def test_without_shift_equals_fvcore_on_one_hot_targets(fvcore_loss, alpha, gamma):
    logits, labels = random_case()
    counted = labels >= 0
    targets = F.one_hot(labels[counted], 8)[:, :7].float()
    expected = fvcore_loss(logits[counted], targets, -1.0 if alpha is None else alpha, gamma, "sum")
    expected, expected_gradient = value_and_gradient(expected, logits)
    loss, gradient = value_and_gradient(focal_star_loss(logits, labels, alpha=alpha, gamma=gamma, beta=0.0), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [None, 0.75, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
def test_gamma_one_without_shift_is_cross_entropy(alpha):
    logits, labels = random_case()
    expected, expected_gradient = value_and_gradient(sigmoid_cross_entropy_loss(logits, labels, alpha=alpha), logits)
    loss, gradient = value_and_gradient(focal_star_loss(logits, labels, alpha=alpha, gamma=1.0, beta=0.0), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "bad, message",
    [({"gamma": gamma}, "gamma must be a finite number > 0") for gamma in (0.0, -1.0, math.nan, math.inf)]
    + [({"beta": beta}, "beta must be a finite number") for beta in (math.nan, math.inf, -math.inf)],
)
def test_parameters_out_of_range_are_refused(bad, message):
    logits, labels = random_case()
    for build in (SigmoidFocalStarLoss, lambda **settings: focal_star_loss(logits, labels, **settings)):
        with pytest.raises(ValueError, match=message):
            build(**bad)
