"""Value and gradient of every loss against float64 closed forms, at every precision, over the whole range."""

import numpy as np
import pytest
import torch

from .closed_forms import FAMILY, SETTINGS, TYPICAL, call_module, closed_form, random_case, value_and_gradient

CASES = [(name, settings) for name, variants in SETTINGS.items() for settings in variants]
SMOOTH = [(name, settings) for name, settings in CASES if name != "hinge"]


@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
@pytest.mark.parametrize("name, settings", CASES)
def test_value_and_gradient_are_the_closed_form(name, settings, alpha, assert_close):
    logits, labels = random_case(margin=settings.get("margin"))
    loss, gradient = value_and_gradient(FAMILY[name].function(logits, labels, alpha=alpha, **settings), logits)
    value, expected_gradient = closed_form(name, logits, labels, alpha=alpha, **settings)
    label = name if alpha is None else f"{name}, alpha-balanced"
    assert_close(f"{label}: value", loss, value.sum(), tolerance=2e-6)
    assert_close(f"{label}: gradient", gradient, expected_gradient, tolerance=2e-6)


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("name, settings", CASES)
def test_gradcheck_in_double(name, settings, alpha):
    logits, labels = random_case(8, 3, scale=1.0, margin=settings.get("margin"), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: FAMILY[name].function(x, labels, alpha=alpha, **settings), (logits,), raise_exception=True
    )
    loss = FAMILY[name].function(logits, labels, alpha=alpha, **settings)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(closed_form(name, logits, labels, alpha=alpha, **settings)[0].sum(), rel=1e-12)


@pytest.mark.parametrize("name, settings", SMOOTH)
def test_every_element_of_the_gradient_is_precise(name, settings):
    """Relative to itself, however small: the gradient of an easy example is no difference of large numbers."""
    logits, labels = random_case(scale=1.0)
    logits = (logits.detach().sign() * 12 * torch.rand_like(logits)).requires_grad_()
    _, gradient = value_and_gradient(FAMILY[name].function(logits, labels, alpha=0.25, **settings), logits)
    _, expected = closed_form(name, logits, labels, alpha=0.25, **settings)
    np.testing.assert_allclose(gradient.double().numpy(), expected, rtol=3e-5, atol=1e-37)


@pytest.mark.parametrize("name, settings", SMOOTH)
def test_easy_examples_keep_their_precision(name, settings):
    logits = -8 - 4 * torch.rand(100, 3)
    labels = torch.full((100,), 3)
    value, _ = closed_form(name, logits, labels, alpha=0.25, **settings)
    loss = FAMILY[name].function(logits, labels, alpha=0.25, **settings)
    assert loss.item() == pytest.approx(value.sum(), rel=2e-5, abs=0)


LARGEST_LOGIT = {torch.float32: 1e4, torch.bfloat16: 1e4, torch.float16: 6e4}


@pytest.mark.parametrize("dtype", LARGEST_LOGIT)
@pytest.mark.parametrize("name", FAMILY)
def test_finite_for_every_finite_logit(name, dtype):
    size = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 300)]) * LARGEST_LOGIT[dtype]
    x = torch.cat([size, -size])[:, None].expand(-1, 2).to(dtype)
    labels = torch.zeros(len(x), dtype=torch.int64)  # the first column positive, the second negative
    gammas = [1e-3, 0.1, 0.5, 1.0, 2.0, 5.0, *(5 * torch.rand(5)).clamp(min=1e-3).tolist()]
    variants = {
        "cross_entropy": [{}],
        "focal": [{"gamma": gamma} for gamma in (0.0, *gammas)],
        "focal_star": [{"gamma": gamma, "beta": beta} for gamma in gammas for beta in (0.0, 1.0, -5.0)],
        "hinge": [{"margin": margin} for margin in (1e-3, 0.5, 1.0)],
    }
    for settings in variants[name.removesuffix(", plain")]:
        for alpha in (None, 0.25):
            logits = x.clone().requires_grad_()
            loss = FAMILY[name].function(logits, labels, alpha=alpha, **settings)
            loss, gradient = value_and_gradient(loss, logits)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all(), settings
            value, _ = closed_form(name, logits, labels, alpha=alpha, **settings)
            assert loss.item() == pytest.approx(value.sum(), rel=1e-5), settings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name, settings", TYPICAL)
def test_half_precision_is_computed_in_float32(name, settings, dtype):
    logits, labels = random_case(num_anchors=3000)
    half = logits.detach().to(dtype).requires_grad_()
    as_float32 = half.detach().float().requires_grad_()
    expected, expected_gradient = value_and_gradient(FAMILY[name].function(as_float32, labels, **settings), as_float32)
    loss, gradient = value_and_gradient(FAMILY[name].function(half, labels, **settings), half)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert gradient.dtype == dtype and torch.equal(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name, settings", TYPICAL)
def test_autocast_changes_nothing(name, settings, dtype, autocast):
    logits, labels = random_case()
    logits = logits.detach().to(dtype).requires_grad_()
    module = FAMILY[name].module(alpha=[0.25] * 7, **settings)
    expected, expected_gradient = value_and_gradient(call_module(module, [logits], [labels]), logits)
    with torch.autocast("cpu", dtype=autocast):
        loss = call_module(module, [logits], [labels])
    loss, gradient = value_and_gradient(loss, logits)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected) and torch.equal(gradient, expected_gradient)
