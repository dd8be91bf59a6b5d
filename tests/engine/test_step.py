"""The training step: what it computes, logs and waits for."""

import copy
import math

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch.overrides import TorchFunctionMode

from retina_plugin.core.errors import DivergenceError
from retina_plugin.engine.step import MAX_OVERFLOWS
from retina_plugin.losses import LossNormalizer
from retina_plugin.modeling.gradients import compute_gradients

from .small import make_batches, make_cfg, make_model, make_step, run, state_of


def train(seed, *opts, num_steps=3, **settings):
    cfg = make_cfg(*opts)
    step = make_step(cfg, make_model(cfg, seed), make_batches(seed, num_steps))
    vars(step).update(settings)
    return state_of(step), run(step, num_steps), state_of(step)


def test_without_parts_it_is_the_step_of_detectron2(seed):
    cfg = make_cfg()
    model, batches = make_model(cfg, seed), make_batches(seed, 3)
    optimizer = torch.optim.SGD(model.parameters(), cfg.SOLVER.BASE_LR, momentum=0.9, weight_decay=1e-4)
    theirs = SimpleTrainer(model, batches, optimizer)
    expected = run(theirs, 3)
    _, logged, state = train(seed)
    for name, value in state_of(theirs).items():
        assert torch.equal(state[name], value), name
    for ours, scalars in zip(logged, expected):
        scalars.pop("rank_data_time", None)  # of Detectron2's main
        assert set(ours) == {*scalars, "grad_norm"}
        for name in set(scalars) - {"data_time"}:
            assert ours[name] == pytest.approx(scalars[name], rel=1e-6), name


@pytest.mark.parametrize("mode", LossNormalizer.MODES)
@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_a_training_in_parts_is_the_same_training(seed, mode, num_micro_batches):
    opts = ("MODEL.RETINANET.LOSS_NORMALIZER", mode)
    before, expected, weights = train(seed, *opts)
    _, logged, weights_in_parts = train(seed, *opts, "SOLVER.ACCUMULATE_STEPS", num_micro_batches)
    assert any(not torch.equal(weights[name], value) for name, value in before.items())
    for name, value in weights.items():
        assert (weights_in_parts[name] - value).abs().max() <= 1e-6 * value.abs().max(), name
    for ours, scalars in zip(logged, expected):
        assert set(ours) == set(scalars)
        for name in set(scalars) - {"data_time"}:
            assert ours[name] == pytest.approx(scalars[name], rel=1e-5), name


def test_logs_the_norm_of_the_whole_gradient(seed):
    cfg = make_cfg()
    model, (batch,) = make_model(cfg, seed), make_batches(seed, 1)
    (logged,) = run(make_step(cfg, copy.deepcopy(model), [batch]), 1)
    with EventStorage():
        sum(model(batch).values()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert logged["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)


class Reads(TorchFunctionMode):
    """Counts what fetches values of tensors, and so makes the host wait for a GPU."""

    NAMES = {"item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "nonzero", "__index__"}

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in self.NAMES:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_the_host_waits_once_besides_the_model(seed, num_micro_batches):
    cfg = make_cfg("SOLVER.ACCUMULATE_STEPS", num_micro_batches)
    model, (first, second) = make_model(cfg, seed), make_batches(seed, 2)
    step = make_step(cfg, model, [first, second])
    with EventStorage(), Reads() as of_model:  # matching on a CPU, the kernel of a CPU
        compute_gradients(copy.deepcopy(model), second, num_micro_batches)
    run(step, 1)
    with Reads() as reads:
        run(step, 1, first=1)
    assert sorted(reads.found) == sorted([*of_model.found, "tolist"])


def test_scaling_the_loss_by_a_power_of_two_changes_no_bit(seed):
    _, _, expected = train(seed)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    _, _, scaled = train(seed, grad_scaler=scaler)
    assert scaler.get_scale() == 2048
    for name, value in expected.items():
        assert torch.equal(scaled[name], value), name


class OverflowAbove(torch.autograd.Function):
    """The identity, whose gradient is infinite where its largest entry is above a limit, as in half precision."""

    @staticmethod
    def forward(ctx, x, limit):
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient if gradient.abs().max() < ctx.limit else gradient * math.inf), None


def overflowing(seed, limit, num_steps, *opts, scale=2.0**16):
    """A step under GradScaler whose batches are all the same, so that only the scale decides."""
    cfg = make_cfg(*opts)
    model, (batch,) = make_model(cfg, seed), make_batches(seed, 1)
    model.head.register_forward_hook(lambda *args: ([OverflowAbove.apply(x, limit) for x in args[2][0]], args[2][1]))
    step = make_step(cfg, model, [copy.deepcopy(batch) for _ in range(num_steps)])
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return step


def test_an_overflow_halves_the_scale_and_is_no_divergence(seed, caplog, tmp_path):
    step = overflowing(seed, math.inf, 1, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_NONFINITE_STEPS", 0)
    largest = []
    step.model.head.cls_score.register_full_backward_hook(lambda m, i, o: largest.append(o[0].abs().max().item()))
    run(step, 1)
    limit = max(largest) / 2.0**16 * 2.0**13  # the first scale that does not overflow is 2^12
    step = overflowing(seed, limit, 6, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_NONFINITE_STEPS", 0)
    before = state_of(step)
    logged = run(step, 4)
    assert all("total_loss" not in scalars for scalars in logged)
    assert step.grad_scaler.get_scale() == 2.0**12 and logged[-1]["skipped_steps"] == 4
    assert all(torch.equal(value, before[name]) for name, value in state_of(step).items())
    (applied,) = run(step, 1, first=4)
    assert "total_loss" in applied and "not applied" not in caplog.text and not list(tmp_path.iterdir())
    assert not torch.equal(step.model.head.cls_score.weight, before["head.cls_score.weight"])


def test_overflows_without_end_are_a_divergence(seed, tmp_path):
    opts = ("OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_NONFINITE_STEPS", 0)
    step = overflowing(seed, 0.0, MAX_OVERFLOWS + 1, *opts)
    run(step, MAX_OVERFLOWS)
    with pytest.raises(DivergenceError):
        run(step, 1, first=MAX_OVERFLOWS)


def test_a_loss_that_is_not_finite_leaves_the_scale(seed, tmp_path):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path))
    (batch,) = make_batches(seed, 1)
    batch[2]["image"][0, 5, 5] = math.nan
    step = make_step(cfg, make_model(cfg, seed), [batch, *make_batches(seed, 1)])
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    first, second = run(step, 2)
    assert step.grad_scaler.get_scale() == 512
    assert "total_loss" not in first and "total_loss" in second


def test_state_has_the_form_of_detectron2(seed):
    cfg = make_cfg()
    step = make_step(cfg, make_model(cfg, seed), make_batches(seed, 1))
    assert set(step.state_dict()) == {"iteration", "optimizer"}
    step.grad_scaler = torch.amp.GradScaler("cpu")
    state = step.state_dict()
    assert set(state) == {"iteration", "optimizer", "grad_scaler"}
    state["grad_scaler"]["scale"] = 8.0
    step.load_state_dict(state)
    assert step.grad_scaler.get_scale() == 8
