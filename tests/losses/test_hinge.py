"""The hinge loss above its margin and far below it."""

import math

import pytest
import torch

from retina_plugin.losses import SigmoidHingeLoss, sigmoid_hinge_loss

from .closed_forms import random_case, value_and_gradient


@pytest.mark.parametrize("margin", [0.1, 0.5, 0.9])
def test_exactly_zero_above_the_margin(margin):
    x_t = math.log(margin / (1 - margin)) + 0.01 + 10 * torch.rand(200, 1)
    logits, labels = torch.cat([x_t, -x_t], dim=1).requires_grad_(), torch.zeros(200, dtype=torch.int64)
    loss, gradient = value_and_gradient(sigmoid_hinge_loss(logits, labels, margin=margin), logits)
    assert loss == 0 and (gradient == 0).all()
    logits = (logits.detach() - torch.tensor([[11.0, 0.0]])).requires_grad_()  # now the positives are below it
    _, gradient = value_and_gradient(sigmoid_hinge_loss(logits, labels, margin=margin), logits)
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1] == 0).all()


def test_gradient_vanishes_for_examples_that_are_badly_wrong():
    logits, labels = torch.tensor([[-2.0], [-20.0]], requires_grad=True), torch.zeros(2, dtype=torch.int64)
    _, gradient = value_and_gradient(sigmoid_hinge_loss(logits, labels), logits)
    assert gradient.squeeze(1).tolist() == pytest.approx([-math.exp(-2) / (1 + math.exp(-2)) ** 2, -math.exp(-20)])


@pytest.mark.parametrize("margin", [0.0, -0.5, 1.5, math.nan, math.inf])
def test_margin_out_of_range_is_refused(margin):
    logits, labels = random_case()
    for build in (SigmoidHingeLoss, lambda margin: sigmoid_hinge_loss(logits, labels, margin=margin)):
        with pytest.raises(ValueError, match=r"margin on p_t lies in \(0, 1\], got"):
            build(margin=margin)
