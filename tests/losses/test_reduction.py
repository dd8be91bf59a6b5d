"""The reductions, with the meaning they have in fvcore and torchvision."""

import math
from functools import partial

import fvcore.nn
import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from retina_plugin.losses import sigmoid_focal_loss

from .closed_forms import FAMILY, TYPICAL, closed_form, random_case, value_and_gradient


@pytest.mark.parametrize("alpha", [None, 0.3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
@pytest.mark.parametrize("name, settings", TYPICAL)
def test_each_is_the_closed_form(name, settings, alpha, assert_close):
    logits, labels = random_case(margin=settings.get("margin"))
    value, gradient = closed_form(name, logits, labels, alpha=alpha, **settings)
    number = (labels >= 0).sum().item() * 7
    loss = partial(FAMILY[name].function, logits, labels, alpha=alpha, **settings)
    none = loss(reduction="none")
    assert none.shape == logits.shape and none.dtype == torch.float32 and (none[labels < 0] == 0).all()
    np.testing.assert_allclose(none.detach().double().numpy(), value, rtol=3e-5, atol=1e-7)
    for reduced, factor in ((none.sum(), 1), (loss(reduction="sum"), 1), (loss(reduction="mean"), number)):
        reduced, reduced_gradient = value_and_gradient(reduced, logits)
        assert_close(f"{name}, reductions: value", reduced, value.sum() / factor, tolerance=2e-6)
        assert_close(f"{name}, reductions: gradient", reduced_gradient, gradient / factor, tolerance=2e-6)
    assert torch.equal(loss(), loss(reduction="sum"))


@pytest.mark.parametrize("theirs", [fvcore.nn.sigmoid_focal_loss, torchvision.ops.sigmoid_focal_loss])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_equals_fvcore_and_torchvision(theirs, reduction):
    logits, labels = random_case()
    targets = F.one_hot(labels.clamp(min=0), 8)[:, :7].float()
    counted = labels >= 0
    expected = theirs(logits[counted], targets[counted], alpha=0.25, gamma=2.0, reduction=reduction)
    ours = sigmoid_focal_loss(logits, labels, reduction=reduction)
    ours = ours[counted] if reduction == "none" else ours
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name, settings", TYPICAL)
def test_ignored_anchors_add_nothing_whatever_their_logits(name, settings):
    logits, labels = random_case()
    with torch.no_grad():
        logits[labels < 0] = math.nan
    loss = FAMILY[name].function(logits, labels, reduction="none", **settings)
    assert loss.isfinite().all()
    assert (torch.autograd.grad(loss.sum(), logits)[0][labels < 0] == 0).all()


@pytest.mark.parametrize("name, settings", TYPICAL)
@pytest.mark.parametrize("shape", [(4, 3), (0, 3), (4, 0)])
def test_the_mean_of_nothing_is_zero_with_a_gradient(name, settings, shape):
    logits = torch.randn(shape, requires_grad=True)
    loss = FAMILY[name].function(logits, torch.full(shape[:1], -1), reduction="mean", **settings)
    loss, gradient = value_and_gradient(loss, logits)
    assert loss == 0 and gradient.shape == shape and (gradient == 0).all()


@pytest.mark.parametrize("name, settings", TYPICAL)
@pytest.mark.parametrize("reduction", ["average", "", None])
def test_another_word_is_refused(name, settings, reduction):
    logits, labels = random_case()
    with pytest.raises(ValueError, match=f"reduction '{reduction}' is none of sum, mean, none"):
        FAMILY[name].function(logits, labels, reduction=reduction, **settings)
