"""The losses under torch.func, forward-mode AD and torch.compile: the values of autograd."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

from .closed_forms import FAMILY, TYPICAL, call_module, closed_form, random_case, value_and_gradient

pytestmark = pytest.mark.parametrize("name, settings", TYPICAL)


@pytest.fixture
def loss(name, settings):
    return partial(FAMILY[name].function, alpha=0.3, **settings)


def case(settings, num_anchors=60):
    logits, labels = random_case(num_anchors, margin=settings.get("margin"))
    return logits.detach(), labels


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_grad_and_jvp_are_the_closed_form(name, settings, loss, reduction):
    logits, labels = case(settings)
    _, gradient = closed_form(name, logits, labels, alpha=0.3, **settings)
    expected = torch.from_numpy(gradient) / (1 if reduction == "sum" else (labels >= 0).sum() * 7)
    loss = partial(loss, labels=labels, reduction=reduction)
    torch.testing.assert_close(grad(loss)(logits).double(), expected, rtol=1e-4, atol=1e-7)
    tangent = torch.randn_like(logits)
    value, derivative = jvp(loss, (logits,), (tangent,))
    torch.testing.assert_close(value, loss(logits), rtol=1e-5, atol=1e-6)
    along = (expected * tangent).sum()
    tolerance = 1e-5 * (expected * tangent).abs().sum().item()
    torch.testing.assert_close(derivative.double(), along, rtol=0, atol=tolerance)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(logits, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent.double(), derivative.double())


def test_gradients_of_each_sample(settings, loss):
    logits, labels = case(settings)
    logits, labels = logits.view(6, 10, 7), labels.view(6, 10)
    expected = torch.stack([value_and_gradient(loss(x, y), x)[1] for x, y in zip(logits.requires_grad_(), labels)])
    torch.testing.assert_close(vmap(grad(loss))(logits.detach(), labels), expected, rtol=1e-4, atol=1e-6)
    many = vmap(grad(loss), in_dims=(0, None))(logits.detach(), labels[0])
    expected = torch.stack([value_and_gradient(loss(x, labels[0]), x)[1] for x in logits])
    torch.testing.assert_close(many, expected, rtol=1e-4, atol=1e-6)
    values = vmap(loss)(logits.detach(), labels)
    torch.testing.assert_close(values, torch.stack([loss(x, y) for x, y in zip(logits.detach(), labels)]))


def test_hessian_is_that_of_autograd(settings, loss):
    logits, labels = (x[:3, ...] for x in case(settings))
    expected = torch.autograd.functional.hessian(lambda x: loss(x, labels), logits)
    torch.testing.assert_close(hessian(lambda x: loss(x, labels))(logits), expected, rtol=1e-4, atol=1e-6)


def test_modules_within_a_functional_call(name, settings):
    logits, labels = case(settings)
    module = FAMILY[name].module(alpha=0.3, **settings)

    def functional(levels, *rest):
        return functional_call(module, {}, (levels, *rest))

    gradient = grad(lambda x: call_module(functional, [x], [labels], 4.0))(logits)
    _, expected = closed_form(name, logits, labels, alpha=0.3, **settings)
    torch.testing.assert_close(gradient.double(), torch.from_numpy(expected) / 4, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_compiles_into_one_graph(name, settings, reduction):
    logits, labels = case(settings)
    logits.requires_grad_()
    loss = partial(FAMILY[name].function, alpha=[0.3] * 7, reduction=reduction, **settings)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for some in (slice(None), slice(0, 50), slice(0, 40)):  # the last two with shapes that are symbols
        got, expected = compiled(logits[some], labels[some]), loss(logits[some], labels[some])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (got, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
