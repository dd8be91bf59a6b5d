"""The fused losses against the plain formulas under autograd, AMP, repeated use and torch.compile."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retina_plugin.losses import SigmoidFocalLoss, sigmoid_focal_loss
from retina_plugin.losses.fused import FusedLoss, SigmoidLossFamily, cpu, triton

from ..closed_forms import FAMILY, FUSED, call_module, closed_form, random_case

SETTINGS = {"cross_entropy": {}, "focal": {"gamma": 1.5}, "focal_star": {"gamma": 2.0, "beta": 1.0}}
GPU = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=FUSED)
def functions(request):
    """The fused function, and the plain one."""
    function = partial(FAMILY[request.param].function, alpha=0.25, **SETTINGS[request.param])
    return partial(function, fused=True), partial(function, fused=False)


def gradients(loss, logits, **options):
    return torch.autograd.grad(loss, logits, **options)[0]


@pytest.mark.parametrize("incoming", [1.0, 0.0, -2.5, 65536.0])
def test_any_incoming_gradient(functions, incoming):
    logits, labels = random_case()
    fused, plain = (gradients(f(logits, labels), logits, grad_outputs=torch.tensor(incoming)) for f in functions)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6 * abs(incoming))


def test_the_loss_is_part_of_a_larger_graph(functions):
    logits, labels = random_case()
    weight = torch.rand(7, requires_grad=True)
    results = [torch.autograd.grad((f(logits * weight, labels) / 300) ** 2, [logits, weight]) for f in functions]
    for fused, plain in zip(*results):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())


def test_a_second_backward_pass_leaves_the_first_one_alone(functions):
    logits, labels = random_case()
    loss = functions[0](logits, labels)
    first = gradients(loss, logits, retain_graph=True)
    kept = first.clone()
    second = gradients(loss, logits, retain_graph=True, grad_outputs=torch.tensor(3.0))
    third = gradients(loss, logits)
    assert torch.equal(first, kept) and torch.equal(third, kept)
    torch.testing.assert_close(second, 3 * kept)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(loss, logits)


def test_second_derivatives(functions):
    logits, labels = random_case(6, 3, scale=1.0, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: functions[0](x, labels), (logits,), raise_exception=True)
    single = logits.detach().float().requires_grad_()
    penalty = gradients(functions[0](single, labels), single, create_graph=True).square().sum()
    expected = gradients(functions[1](single, labels), single, create_graph=True).square().sum()
    torch.testing.assert_close(gradients(penalty, single), gradients(expected, single), rtol=1e-4, atol=1e-6)


def test_without_grad_mode_there_is_no_graph_and_the_same_value(functions):
    logits, labels = random_case()
    expected = functions[0](logits, labels)
    with torch.no_grad():
        assert not functions[0](logits, labels).requires_grad
    assert torch.equal(functions[0](logits, labels), expected)
    assert not functions[0](logits.detach(), labels).requires_grad


def test_levels_of_which_some_need_no_gradient():
    cases = [random_case(50) for _ in range(3)]
    logits, labels = [x for x, _ in cases], [y for _, y in cases]
    logits[1] = logits[1].detach()
    for create_graph in (False, True):
        loss = call_module(SigmoidFocalLoss(), logits, labels)
        found = torch.autograd.grad(loss, [logits[0], logits[2]], create_graph=create_graph)
        for gradient, i in zip(found, (0, 2)):
            expected = gradients(sigmoid_focal_loss(logits[i], labels[i], fused=False), logits[i])
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_no_levels_of_different_kinds_are_mixed():
    cases = [random_case(50), random_case(50, dtype=torch.float64)]
    logits, labels = [x for x, _ in cases], [y for _, y in cases]
    loss = call_module(SigmoidFocalLoss(), logits, labels)
    assert loss.item() == pytest.approx(sum(closed_form("focal", *c, alpha=0.25, gamma=2.0)[0].sum() for c in cases))


def test_the_normalizer_divides_value_and_gradient(functions):
    logits, labels = random_case()
    module = SigmoidFocalLoss()
    plain = sigmoid_focal_loss(logits, labels, fused=False) / 37
    loss = call_module(module, [logits], [labels], torch.tensor(37.0))
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradients(loss, logits), gradients(plain, logits), rtol=1e-4, atol=1e-8)


def test_half_precision_gradients_keep_what_a_scaler_saves():
    """Most gradients of an easy background are below fp16's smallest number, until they are scaled."""
    logits = (-12 + torch.rand(200, 3)).half().requires_grad_()
    labels = torch.full((200,), 3)
    _, unscaled = closed_form("focal", logits, labels, alpha=0.25, gamma=2.0)
    assert unscaled.max() < 6e-8
    module = SigmoidFocalLoss()
    for _ in range(2):  # the second step forecasts the scale of the first
        loss = call_module(module, [logits], [labels], torch.tensor(2.0))
        gradient = gradients(loss, logits, grad_outputs=torch.tensor(2.0**24))
        torch.testing.assert_close(gradient.double(), 2.0**23 * torch.from_numpy(unscaled), rtol=1e-3, atol=1e-3)
        assert module.grad_scale == 2.0**24


def test_grad_scale_changes_no_result():
    logits, labels = random_case()
    module, fresh = SigmoidFocalLoss(), SigmoidFocalLoss()
    for scale in torch.tensor([1.0, 8.0, 8.0, 0.5]):
        results = [gradients(call_module(m, [logits], [labels]), logits, grad_outputs=scale) for m in (module, fresh)]
        fresh = SigmoidFocalLoss()
        assert torch.equal(*results)


@pytest.mark.parametrize(
    "family", [SigmoidLossFamily(gamma=2.0), SigmoidLossFamily(gamma=0.5), SigmoidLossFamily(0.0, 2.0, 1.0)]
)
@pytest.mark.parametrize("alpha", [(0.25, 0.75), "one a class"])
def test_the_triton_kernel_within_autograd(family, alpha):
    """Levels in both memory orders; a backward pass with the forecast gradient, and one with another."""
    weights = (torch.rand(5), torch.rand(5)) if alpha == "one a class" else alpha
    outputs = [torch.randn(2, 3 * 5, 4, 6), torch.randn(2, 3 * 5, 2, 3).to(memory_format=torch.channels_last)]
    labels = [torch.randint(-1, 6, (2, *x.shape[2:], 3)) for x in outputs]
    results = []
    for kernel, device in ((triton, GPU), (cpu, "cpu")):
        leaves = [x.to(device).requires_grad_() for x in outputs]
        logits = [x.unflatten(1, (3, 5)).permute(0, 3, 4, 1, 2) for x in leaves]
        there = [w.to(device) if isinstance(w, torch.Tensor) else w for w in weights]
        loss = FusedLoss(kernel, family, there, None)(
            logits, [y.to(device) for y in labels], torch.tensor(9.0, device=device), torch.ones((), device=device)
        )
        found = torch.autograd.grad(loss, leaves, retain_graph=True)
        again = torch.autograd.grad(loss, leaves, torch.tensor(-4.0, device=device))
        assert all(g.stride() == x.stride() for g, x in zip(found, outputs))
        results.append([loss.detach().cpu(), *(g.cpu() for g in (*found, *again))])
    for of_triton, of_cpu in zip(*results):
        torch.testing.assert_close(of_triton, of_cpu, rtol=1e-4, atol=1e-6)


def test_modules_can_be_copied_and_pickled():
    logits, labels = random_case()
    module = SigmoidFocalLoss(alpha=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    expected = call_module(module, [logits], [labels])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(call_module(other, [logits], [labels]), expected)


def test_alpha_that_learns_gets_its_gradient():
    logits, labels = random_case()
    alpha = torch.rand(7, requires_grad=True)
    (gradient,) = torch.autograd.grad(sigmoid_focal_loss(logits, labels, alpha=alpha), alpha)
    at_ends = [
        closed_form("focal", logits, labels, alpha=[a] * 7, gamma=2.0)[0].reshape(-1, 7).sum(axis=0) for a in (0, 1)
    ]
    torch.testing.assert_close(gradient.double(), torch.from_numpy(at_ends[1] - at_ends[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile(functions):
    """The compiled step runs, and gives the same; what the compiler does with the formula is its own affair."""
    logits, labels = random_case()
    expected = functions[1](logits, labels)
    compiled = torch.compile(functions[0], backend="aot_eager")(logits, labels)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(gradients(compiled, logits), gradients(expected, logits), rtol=1e-4, atol=1e-6)


class LargestAllocations(TorchDispatchMode):
    """Bytes of every storage that an operator makes."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in before:
                self.sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_but_the_gradient_is_as_large_as_the_logits(memory_format, dtype):
    """P3 of an 800 x 1344 image with 80 classes: 48 MB of float32."""
    output = (torch.randn(1, 9 * 80, 100, 168) - 4).to(dtype, memory_format=memory_format).requires_grad_()
    logits = output.unflatten(1, (9, 80)).permute(0, 3, 4, 1, 2)
    labels = torch.full(logits.shape[:-1], 80)
    labels[torch.rand(labels.shape) < 0.01] = -1
    labels[torch.rand(labels.shape) < 0.001] = 7
    with LargestAllocations() as allocations:
        call_module(SigmoidFocalLoss(), [logits], [labels], torch.tensor(5.0)).backward()
    largest, second = sorted(allocations.sizes.values(), reverse=True)[:2]
    assert largest == output.numel() * output.element_size() and second <= 8e6
