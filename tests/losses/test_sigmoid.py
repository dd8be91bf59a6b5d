"""What all losses on sigmoid outputs share: the weight alpha, ignored anchors, the sum over levels."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from .closed_forms import FAMILY, TYPICAL, call_module, closed_form, random_case, value_and_gradient

pytestmark = pytest.mark.parametrize("name, settings", TYPICAL)


@pytest.fixture
def loss(name, settings):
    """The plain function, its own parameters bound: loss(logits, labels, alpha=...)."""
    return partial(FAMILY[name].function, **settings)


@pytest.fixture
def make_module(name, settings):
    """make_module(alpha=...), with the loss's own parameters."""
    return partial(FAMILY[name].module, **settings)


def test_alpha_one_half_halves_the_loss_without_alpha(loss):
    logits, labels = random_case()
    off, off_gradient = value_and_gradient(loss(logits, labels, alpha=None), logits)
    half, half_gradient = value_and_gradient(loss(logits, labels, alpha=0.5), logits)
    torch.testing.assert_close(half, off / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(half_gradient, off_gradient / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_at_its_ends_counts_one_side_alone(loss, alpha):
    logits, labels = random_case()
    _, gradient = value_and_gradient(loss(logits, labels, alpha=alpha), logits)
    is_class = labels[:, None] == torch.arange(7)
    assert (gradient[is_class] == 0).all() == (alpha == 0.0)
    assert (gradient[~is_class] == 0).all() == (alpha == 1.0)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_equal_alphas_for_all_classes_are_the_one_number(loss, kind):
    logits, labels = random_case()
    one, one_gradient = value_and_gradient(loss(logits, labels, alpha=0.3), logits)
    per_class, gradient = value_and_gradient(loss(logits, labels, alpha=kind([0.3] * 7)), logits)
    torch.testing.assert_close(per_class, one, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, one_gradient, rtol=1e-6, atol=0)


def test_alpha_per_class_is_the_closed_form(name, settings, loss, make_module):
    logits, labels = random_case(margin=settings.get("margin"))
    alpha = torch.rand(7).tolist()
    value, expected_gradient = closed_form(name, logits, labels, alpha=alpha, **settings)
    module = make_module(alpha=alpha)
    for result in (loss(logits, labels, alpha=alpha), call_module(module, [logits], [labels])):
        result, gradient = value_and_gradient(result, logits)
        assert result.item() == pytest.approx(value.sum(), rel=2e-6)
        np.testing.assert_allclose(gradient.double().numpy(), expected_gradient, rtol=1e-4, atol=1e-7)


def test_alpha_per_class_moves_with_the_module_and_is_not_saved(make_module):
    module = make_module(alpha=[0.1, 0.5, 0.9])
    assert list(module.state_dict()) == [] and list(module.parameters()) == []
    module.load_state_dict({})  # strict, and no error
    assert module.to(torch.float64).alpha.dtype == torch.float64
    assert module.to("meta").alpha.device.type == "meta"
    assert list(make_module(alpha=0.25).state_dict()) == []


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("alpha", [None, 0.25, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
def test_ignored_anchors_add_exactly_nothing(loss, alpha, garbage):
    logits, labels = random_case()
    ignored = labels == -1
    expected, expected_gradient = value_and_gradient(loss(logits, labels, alpha=alpha), logits)
    with_garbage = logits.detach().clone()
    with_garbage[ignored] = garbage
    with_garbage.requires_grad_()
    result, gradient = value_and_gradient(loss(with_garbage, labels, alpha=alpha), with_garbage)
    assert torch.equal(result, expected) and torch.equal(gradient, expected_gradient)
    assert (gradient[ignored] == 0).all() and (gradient[~ignored] != 0).any()


@pytest.mark.parametrize("num_anchors", [4, 0])
@pytest.mark.parametrize("alpha", [None, 0.25, [0.1, 0.2, 0.3]])
def test_no_anchor_counted_gives_zero_with_gradient(loss, make_module, alpha, num_anchors):
    logits = torch.full((num_anchors, 3), math.nan, requires_grad=True)
    labels = torch.full((num_anchors,), -1)
    for result in (loss(logits, labels, alpha=alpha), call_module(make_module(alpha=alpha), [logits], [labels])):
        result, gradient = value_and_gradient(result, logits)
        assert result.shape == () and result.dtype == torch.float32 and result == 0
        assert gradient.shape == (num_anchors, 3) and (gradient == 0).all()


def test_background_is_a_negative_of_every_class(name, settings, loss):
    logits, _ = random_case(margin=settings.get("margin"))
    result, gradient = value_and_gradient(loss(logits, torch.full((400,), 7), alpha=0.25), logits)
    value, derivative = FAMILY[name].formula(-logits.detach().double().numpy(), **settings)
    assert result.item() == pytest.approx(0.75 * value.sum(), rel=2e-6)
    np.testing.assert_allclose(gradient.double().numpy(), -0.75 * derivative, rtol=1e-4, atol=1e-7)
    assert (gradient >= 0).all() and (gradient > 0).any()


@pytest.mark.parametrize("alpha", [None, 0.25, [0.1, 0.3, 0.5, 0.7, 0.9]])
def test_module_sums_levels_of_any_memory_order(name, settings, make_module, alpha, assert_close):
    num_classes, anchors = 5, 3
    margin = settings.get("margin")
    head_outputs = [
        random_case(2 * s * (s + 1) * anchors, num_classes, margin=margin)[0].detach().view(2, -1, s, s + 1)
        for s in (6, 3, 1)
    ]
    logits = [x.requires_grad_().unflatten(1, (anchors, num_classes)).permute(0, 3, 4, 1, 2) for x in head_outputs]
    assert not any(x.is_contiguous() for x in logits)
    labels = [torch.randint(-1, num_classes + 1, x.shape[:4]) for x in logits]
    loss = call_module(make_module(alpha=alpha), logits, labels)
    assert loss.shape == () and loss.dtype == torch.float32
    expected = [closed_form(name, x, y, alpha=alpha, **settings) for x, y in zip(logits, labels)]
    assert_close(f"{name}, module over levels: value", loss.detach(), sum(v.sum() for v, _ in expected), 2e-6)
    loss.backward()
    for x, (_, gradient) in zip(head_outputs, expected):
        by_anchor = x.grad.view(2, anchors, num_classes, *x.shape[2:]).permute(0, 3, 4, 1, 2)
        assert_close(f"{name}, module over levels: gradient", by_anchor, gradient, 2e-6)


@pytest.mark.parametrize("alpha", [1.5, -0.1, -1, math.nan, [0.5, 0.5, 1.2], (0.5, -1, 0.5), [0.5, math.nan, 0.5]])
def test_alpha_out_of_range_is_refused(loss, make_module, alpha):
    logits, labels = random_case(num_classes=3)
    for build in (partial(loss, logits, labels), make_module):
        with pytest.raises(ValueError, match=r"alpha.*\[0, 1\], got"):
            build(alpha=alpha)


@pytest.mark.parametrize("alpha", [[0.5], [0.5, 0.5], [0.5] * 4])
def test_another_number_of_alphas_than_classes_is_refused(loss, make_module, alpha):
    logits, labels = random_case(num_classes=3)
    for call in (partial(loss, alpha=alpha), lambda x, y: call_module(make_module(alpha=alpha), [x], [y])):
        with pytest.raises(ValueError, match=rf"alpha has shape \({len(alpha)},\).*each of 3"):
            call(logits, labels)
    with pytest.raises(ValueError, match=r"alpha has shape \(3, 1\)"):
        loss(logits, labels, alpha=torch.full((3, 1), 0.5))


ALPHAS = {
    "list with a whole number": [0.25, 0.5, 1],
    "tuple of whole numbers": (0, 1, 1),
    "array": np.array([0.25, 0.5, 0.75]),
    "double tensor": torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64),
    "tensor of one number": torch.tensor(0.25),
    "number of numpy": np.float64(0.25),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_of_alpha_leaves_the_precision_of_the_logits(kind, dtype, name, settings, loss, make_module):
    alpha = ALPHAS[kind]
    logits, labels = torch.randn(1, 6, 5, 2, 3, dtype=dtype), torch.randint(0, 4, (1, 6, 5, 2))
    value, _ = closed_form(name, logits, labels, alpha=np.asarray(alpha), **settings)
    for result in (loss(logits, labels, alpha=alpha), call_module(make_module(alpha=alpha), [logits], [labels])):
        assert result.dtype == dtype and result.item() == pytest.approx(value.sum(), rel=1e-5)
