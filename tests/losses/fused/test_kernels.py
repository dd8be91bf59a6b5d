"""Both kernels against float64 closed forms. Without a GPU, Triton's interpreter runs the Triton kernel."""

import math

import numpy as np
import pytest
import torch

from retina_plugin.losses.fused import SigmoidLossFamily, cpu, triton

from ..closed_forms import closed_form

KERNELS = {"cpu": (cpu, "cpu"), "triton": (triton, "cuda" if torch.cuda.is_available() else "cpu")}
FAMILIES = {
    "cross_entropy": ({}, SigmoidLossFamily()),
    "focal": ({"gamma": 2.0}, SigmoidLossFamily(gamma=2.0)),
    "focal ": ({"gamma": 0.7}, SigmoidLossFamily(gamma=0.7)),
    "focal_star": ({"gamma": 3.0, "beta": -0.5}, SigmoidLossFamily(steepness=3.0, shift=-0.5)),
}
SHAPES = [(2, 3, 5), (2, 11, 130), (40, 7, 1), (1, 1, 1), (1, 9, 4), (150, 1, 1), (0, 4, 3), (4, 4, 0)]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", 100)  # many blocks, and classes split over them
    monkeypatch.setattr(triton, "ROW_BLOCK", 64)
    monkeypatch.setattr(triton, "PLANE_BLOCK", 64)
    return KERNELS[request.param]


def run(kernel, x, y, family, weights=(1.0, 1.0), scale=1.0, gradient=True):
    module, device = kernel
    weights = [w.to(device) if isinstance(w, torch.Tensor) else w for w in weights]
    gradient = torch.full_like(x, math.nan, device=device) if gradient else None
    scale = torch.tensor(scale, device=device)
    loss = module.loss_and_gradient(x.to(device), y.to(device), family, weights, scale, gradient)
    assert loss.shape == () and loss.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    return loss.cpu(), None if gradient is None else gradient.cpu()


def expected(name, x, y, scale=1.0, **settings):
    """Of planes (O, K, I) and (O, I)."""
    value, gradient = closed_form(name.strip(), x.float().transpose(1, 2), y, **settings)
    return torch.from_numpy(value).sum(), scale * torch.from_numpy(gradient).transpose(1, 2)


def random_planes(shape, scale=4.0):
    outer, classes, inner = shape
    return torch.randn(shape) * scale, torch.randint(-1, classes + 1, (outer, inner), dtype=torch.int32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("alpha", [None, 0.3, "one a class"])
def test_is_the_closed_form(kernel, name, shape, alpha):
    settings, family = FAMILIES[name]
    x, y = random_planes(shape)
    if alpha == "one a class":
        alpha = torch.rand(shape[1])
    weights = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    loss, gradient = run(kernel, x, y, family, weights, scale=0.3)
    value, expected_gradient = expected(name, x, y, 0.3, alpha=alpha, **settings)
    assert loss.item() == pytest.approx(value.item(), rel=2e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_gradient_the_value_is_the_same(kernel, name):
    x, y = random_planes((3, 4, 20))
    alone, _ = run(kernel, x, y, FAMILIES[name][1], gradient=False)
    assert torch.equal(alone, run(kernel, x, y, FAMILIES[name][1])[0])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(300, 1, 1), (1, 1, 300)], ids=str)
@pytest.mark.parametrize("label", [0, 1])
def test_every_element_is_precise_relative_to_itself(kernel, name, shape, label):
    """Also for easy examples, whose loss is tiny; a label of 1 is background here."""
    settings, family = FAMILIES[name]
    x = torch.linspace(-30, 30, 300).view(shape)
    y = torch.full((shape[0], shape[2]), label, dtype=torch.int32)
    _, gradient = run(kernel, x, y, family)
    np.testing.assert_allclose(gradient, expected(name, x, y, **settings)[1], rtol=5e-5, atol=1e-36)
    for i in (0, 75, 149, 150, 299):
        one = (slice(i, i + 1), slice(None)) if shape[0] > 1 else (slice(None), slice(i, i + 1))
        x_i = x[one[0], :, one[1]]
        loss, _ = run(kernel, x_i, y[one], family)
        assert loss.item() == pytest.approx(expected(name, x_i, y[one], **settings)[0].item(), rel=2e-5, abs=1e-36)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_for_huge_logits_and_zero_for_ignored_ones(kernel, name, dtype):
    x = torch.tensor([0.0, 1e-6, 15, 17, 80, 90, 1e4, -1e-6, -15, -17, -80, -90, -1e4], dtype=dtype)
    x = x.view(-1, 1, 1).expand(-1, 2, 1).contiguous()
    y = torch.zeros(len(x), 1, dtype=torch.int32)
    loss, gradient = run(kernel, x, y, FAMILIES[name][1])
    value, expected_gradient = expected(name, x, y, **FAMILIES[name][0])
    assert loss.item() == pytest.approx(value.item(), rel=1e-5)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.float(), expected_gradient.to(dtype).float(), rtol=1e-2, atol=1e-6)
    for garbage in (math.nan, math.inf, -math.inf):
        ignored = torch.full_like(x, garbage)
        both = run(kernel, torch.cat([x, ignored]), torch.cat([y, y - 1]), FAMILIES[name][1])
        assert both[0].item() == pytest.approx(loss.item(), rel=1e-6)
        assert torch.equal(both[1][: len(x)], gradient) and (both[1][len(x) :] == 0).all()


@pytest.mark.parametrize("shape", [(2, 9, 50), (40, 7, 1), (0, 2, 2)], ids=str)
def test_a_gradient_is_rewritten_for_another_scale_alone(kernel, shape):
    module, device = kernel
    x, y = random_planes(shape)
    family = SigmoidLossFamily(gamma=2.0)
    _, expected_gradient = run(kernel, x, y, family, scale=0.5)
    for written, rewritten in ((0.5, False), (0.25, True), (math.nan, True)):
        gradient = torch.full_like(x, 7.0, device=device)
        scales = [torch.tensor(s, device=device) for s in (0.5, written)]
        module.loss_and_gradient(x.to(device), y.to(device), family, (1.0, 1.0), scales[0], gradient, scales[1])
        assert torch.equal(gradient.cpu(), expected_gradient if rewritten else torch.full_like(x, 7.0))


def test_the_same_at_every_run(kernel):
    x, y = random_planes((2, 9, 130))
    first, second = (run(kernel, x, y, SigmoidLossFamily(gamma=2.0)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_double_precision_on_the_cpu():
    x, y = torch.randn(4, 5, 6, dtype=torch.float64) * 10, torch.randint(-1, 6, (4, 6))
    for name, (settings, family) in FAMILIES.items():
        loss, gradient = run(KERNELS["cpu"], x, y, family)
        value, expected_gradient = closed_form(name.strip(), x.transpose(1, 2), y, **settings)
        assert loss.item() == pytest.approx(value.sum(), rel=1e-12)
        np.testing.assert_allclose(gradient.transpose(1, 2), expected_gradient, rtol=1e-8, atol=1e-12)
