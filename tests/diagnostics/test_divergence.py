"""Steps that are not finite: what is put back, said, kept, and when training ends."""

import copy
import gc
import logging
import math
import re

import pytest
import torch
from detectron2.utils.events import get_event_storage
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retina_plugin.core.errors import DivergenceError
from retina_plugin.diagnostics.divergence import MAX_SNAPSHOTS, last_good_checkpoint
from retina_plugin.diagnostics.snapshot import read_snapshot

from ..engine.small import make_batches, make_cfg, make_image, make_model, make_step, run, state_of

NORMS = ("MODEL.FPN.NORM", "BN")  # which change buffers in forward


class FailingLoss(nn.Module):
    """A loss that is not a number at one iteration."""

    def __init__(self, loss, iteration):
        super().__init__()
        self.loss, self.iteration = loss, iteration

    def forward(self, *args):
        value = self.loss(*args)
        return value * math.nan if get_event_storage().iter == self.iteration else value


class InfiniteGradient(torch.autograd.Function):
    """The identity with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + math.inf


def nan_pixel(model, batch):
    batch[1]["image"][2, 3, 4] = math.nan


def nan_loss(model, batch):
    model.classification_loss = FailingLoss(model.classification_loss, 2)


def infinite_gradient(model, batch):
    def hook(module, inputs, output):
        return InfiniteGradient.apply(output) if get_event_storage().iter == 2 else output

    model.head.bbox_pred.register_forward_hook(hook)


def overflowing_statistics(model, batch):
    """Activations whose variance float64 cannot hold, where a norm forgets their size: all else stays finite."""

    def hook(module, inputs):
        return (inputs[0] * 1e160,) if get_event_storage().iter == 2 else None

    model.backbone.levels[1].norm.register_forward_pre_hook(hook)


def train_past(cfg, seed, spoil=None, batches=5):
    """Five steps, the third of which is spoiled, or four without it."""
    model, data = make_model(cfg, seed), make_batches(seed, batches)
    if spoil is None:
        del data[2]
    else:
        spoil(model, data[2])
    step = make_step(cfg, model, data)
    return run(step, len(data)), {name.replace(".loss.", "."): value for name, value in state_of(step).items()}


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("spoil", [nan_pixel, nan_loss, infinite_gradient, overflowing_statistics])
def test_a_training_goes_on_bit_for_bit_as_without_the_batch(seed, tmp_path, caplog, spoil, num_micro_batches):
    cfg = make_cfg(*NORMS, "OUTPUT_DIR", str(tmp_path), "SOLVER.ACCUMULATE_STEPS", num_micro_batches)
    _, expected = train_past(cfg, seed)
    logged, state = train_past(cfg, seed, spoil)
    assert set(state) == set(expected) and any("running_mean" in name for name in state)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert ["total_loss" in scalars for scalars in logged] == [True, True, False, True, True]
    assert [scalars.get("skipped_steps") for scalars in logged] == [None, None, 1, 1, 1]
    assert caplog.text.count("was not applied") == 1 and "The step of iteration 2 was not applied" in caplog.text


@pytest.mark.parametrize(
    "spoil, parts",
    [
        (nan_pixel, ["street/9.jpg: 1 values of its pixels are not finite", "is not finite: backbone.stem"]),
        (nan_loss, ["loss_cls is nan, grad_norm is nan", "is not finite: classification_loss"]),
        (infinite_gradient, ["not applied: grad_norm is ", "head.bbox_pred.weight"]),
    ],
)
def test_the_report_names_the_cause(seed, tmp_path, caplog, spoil, parts):
    train_past(make_cfg("OUTPUT_DIR", str(tmp_path)), seed, spoil)
    for part in parts:
        assert part in caplog.text
    assert "images: id 8 street/8.jpg, id 9 street/9.jpg, id 10 street/10.jpg, id 11 street/11.jpg" in caplog.text
    assert "at a learning rate of 0.01" in caplog.text
    assert f"python -m retina_plugin replay {tmp_path}/divergence/iteration_2_rank_0.pth" in caplog.text


def test_the_report_gives_the_extremes_of_the_predictions(seed, tmp_path, caplog):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path))
    model, (batch,) = make_model(cfg, seed), make_batches(seed, 1)
    model.classification_loss = FailingLoss(model.classification_loss, 0)
    predictions = []
    model.head.register_forward_hook(lambda head, inputs, output: predictions.append(output))
    run(make_step(cfg, model, [batch]), 1)
    logits, deltas = predictions[0][:2]
    level = max(range(3), key=lambda i: logits[i].abs().max())
    by_class = logits[level].unflatten(1, (-1, 3)).abs().amax(dim=(0, 1, 3, 4))
    expected = f"largest logit: {by_class.max():.3g} (level p{3 + level}, class {by_class.argmax()})"
    assert expected in caplog.text
    level = max(range(3), key=lambda i: deltas[i].abs().max())
    assert f"largest predicted box delta: {deltas[level].abs().max():.3g} (level p{3 + level})" in caplog.text
    labels = model.assign(batch).labels
    assert f"positive anchors: {((labels >= 0) & (labels < 3)).sum()}" in caplog.text


def test_statistics_that_overflow_are_reported_with_their_module(seed, tmp_path, caplog):
    """Losses and gradients are finite."""
    cfg = make_cfg(*NORMS, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_NONFINITE_STEPS", 1)
    model, batches = make_model(cfg, seed).float(), make_batches(seed, 3)
    with torch.no_grad():
        model.backbone.levels[0].weight.mul_(1e21)
    step = make_step(cfg, model, batches)
    (logged,) = run(step, 1)
    assert "total_loss" not in logged and "nonfinite_buffer_values" not in logged
    assert "iteration 0 was not applied: " in caplog.text and " values of buffers are not finite, at" in caplog.text
    assert "buffers that the step makes not finite: backbone.levels.0.norm.running_var\n" in caplog.text
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(DivergenceError, match="losses, gradients or buffers of 2 steps"):
        run(step, 1, first=1)


def test_a_buffer_of_infinities_is_part_of_a_model(seed, tmp_path, caplog):
    cfg = make_cfg(*NORMS, "OUTPUT_DIR", str(tmp_path))
    model = make_model(cfg, seed)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    step = make_step(cfg, model, make_batches(seed, 2))
    logged = run(step, 2)
    assert all("total_loss" in scalars for scalars in logged) and "not applied" not in caplog.text
    assert not caplog.messages


def test_statistics_that_were_loaded_are_named_once(seed, tmp_path, caplog):
    cfg = make_cfg(*NORMS, "OUTPUT_DIR", str(tmp_path))
    model = make_model(cfg, seed)
    model.backbone.levels[1].norm.running_var[3] = math.inf
    run(make_step(cfg, model, make_batches(seed, 2)), 2)
    (line,) = caplog.messages
    assert "inf or NaN before the first step: backbone.levels.1.norm.running_var. Evaluation" in line


@pytest.mark.parametrize(
    "box, what",
    [
        ((10.0, 10.0, 10.0, 30.0), "is degenerate, 0 x 20 pixels"),
        ((10.0, 10.0, 4.0, 30.0), "is degenerate, -6 x 20 pixels"),
        ((10.0, math.nan, 20.0, 30.0), "has coordinates that are not finite"),
        ((10.0, 10.0, math.inf, 30.0), "has coordinates that are not finite"),
    ],
)
def test_boxes_that_are_none(seed, tmp_path, caplog, box, what):
    """They match nothing in FocalRetinaNet. In Detectron2's own RetinaNet the first two match what overlaps nothing."""
    opts = ("OUTPUT_DIR", str(tmp_path))
    theirs = ("MODEL.META_ARCHITECTURE", "RetinaNet")
    for cfg in (make_cfg(*opts), make_cfg(*opts, *theirs)):
        model, (batch,) = make_model(cfg, seed).float(), make_batches(seed, 1)
        batch[0]["instances"].gt_boxes.tensor[0] = torch.tensor(box)
        caplog.clear()
        (logged,) = run(make_step(cfg, model, [batch]), 1)
        assert ("total_loss" in logged) == ("was not applied" not in caplog.text)
        if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and "degenerate" in what:
            assert f"id 0 street/0.jpg: box 0 {what}" in caplog.text
        elif cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet":
            assert "total_loss" in logged


def test_a_learning_rate_that_explodes_ends_the_training(seed, tmp_path, caplog):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e30, "SOLVER.MAX_NONFINITE_STEPS", 2)
    model = make_model(cfg, seed).float()
    step = make_step(cfg, model, make_batches(seed, 20))
    with pytest.raises(DivergenceError) as error:
        run(step, 20)
    assert caplog.text.count("was not applied") == 3
    assert all(p.isfinite().all() for p in model.parameters()), "steps that are not finite are not applied"
    first = int(re.search(r"iteration (\d+) was not applied", caplog.text)[1])
    lines = str(error.value).splitlines()
    assert lines[0].startswith("training diverged: losses, gradients or buffers of 3 steps")
    assert f"since iteration {first};" in lines[0]
    assert lines[1].startswith(f"there is no checkpoint from before iteration {first} in {tmp_path}: start again")
    assert lines[2].endswith(f"python -m retina_plugin replay {tmp_path}/divergence/iteration_{first}_rank_0.pth")
    rate = "BASE_LR is 1e+30; for SOLVER.IMS_PER_BATCH 16 the linear rule gives 0.01"
    causes = [rate, "warm-up", "check-data", "PIXEL_STD"]
    assert all(cause in line for cause, line in zip(causes, lines[4:]))


def spoiled_at(seed, tmp_path, iterations, num_steps, allowed):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_NONFINITE_STEPS", allowed)
    batches = [[make_image(seed, i, 1)] for i in range(num_steps)]
    for i in iterations:
        batches[i][0]["image"][0, 0, 0] = math.inf
    return make_step(cfg, make_model(cfg, seed), batches)


@pytest.mark.parametrize("allowed", [0, 2])
def test_so_many_steps_are_allowed_in_a_thousand_iterations(seed, tmp_path, allowed):
    step = spoiled_at(seed, tmp_path, range(0, 2 * allowed + 1, 2), 2 * allowed + 1, allowed)
    run(step, 2 * allowed)
    with pytest.raises(DivergenceError):
        run(step, 1, first=2 * allowed)


def test_steps_of_long_ago_do_not_count(seed, tmp_path):
    step = spoiled_at(seed, tmp_path, range(4), 4, 1)
    run(step, 1, first=0)
    run(step, 1, first=1000)
    run(step, 1, first=2000)
    with pytest.raises(DivergenceError, match="since iteration 2000"):
        run(step, 1, first=2999)


def test_files_are_few_and_hold_the_step(seed, tmp_path, caplog):
    step = spoiled_at(seed, tmp_path, range(5), 5, 10)
    weights = {name: value.clone() for name, value in step.model.state_dict().items()}
    batch = copy.deepcopy(step.data_loader[0])
    run(step, 5)
    files = sorted(path.name for path in (tmp_path / "divergence").iterdir())
    assert files == [f"iteration_{i}_rank_0.pth" for i in range(MAX_SNAPSHOTS)]
    assert caplog.text.count("not saved") == 5 - MAX_SNAPSHOTS
    recorded, data = read_snapshot(tmp_path / "divergence" / files[0])
    assert all(torch.equal(data["model"][name], value) for name, value in weights.items())
    assert (recorded.iteration, recorded.precision, recorded.loss_scale) == (0, "fp32", 1)
    assert torch.equal(recorded.batch[0]["image"], batch[0]["image"]) and recorded.batch[0]["image_id"] == 0
    assert torch.equal(recorded.batch[0]["instances"].gt_boxes.tensor, batch[0]["instances"].gt_boxes.tensor)
    assert torch.equal(recorded.batch[0]["instances"].gt_classes, batch[0]["instances"].gt_classes)
    assert data["learning_rate"] == 0.01 and "IMS_PER_BATCH: 16" in data["config"]


def test_a_folder_that_cannot_be_written_ends_nothing(seed, tmp_path, caplog):
    (tmp_path / "divergence").write_text("a file")
    run(spoiled_at(seed, tmp_path, [0], 2, 10), 2)
    assert "not saved" in caplog.text


def test_a_module_that_fails_when_run_again_ends_nothing(seed, tmp_path, caplog):
    step, calls = spoiled_at(seed, tmp_path, [0], 2, 10), []

    def fail_second_time(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    step.model.head.register_forward_pre_hook(fail_second_time)
    first, second = run(step, 2)
    assert "running the step again failed: RuntimeError: out of memory" in caplog.text
    assert "total_loss" not in first and "total_loss" in second


def test_the_last_good_checkpoint_is_of_before(tmp_path):
    for name in ("model_0000499", "model_0000999", "model_0001499", "model_final"):
        (tmp_path / f"{name}.pth").touch()
    assert last_good_checkpoint(str(tmp_path), 1200) == f"last good checkpoint: {tmp_path}/model_0000999.pth"
    assert "there is no checkpoint" in last_good_checkpoint(str(tmp_path), 400)


def _run_process(rank, folder, seed):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    logging.getLogger("retina_plugin").addHandler(logging.FileHandler(f"{folder}/log_{rank}.txt"))
    mode = ("MODEL.RETINANET.LOSS_NORMALIZER", "positives_global")
    cfg = make_cfg(*NORMS, *mode, "OUTPUT_DIR", folder, "SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.MAX_NONFINITE_STEPS", 1)
    for is_spoiled in (False, True):
        batches = [batch[2 * rank :][:2] for batch in make_batches(seed, 5)]
        if is_spoiled:
            batches[(4, 2)[rank]][0]["image"][0, 0, 0] = math.nan
        else:
            del batches[2]
        model = DistributedDataParallel(make_model(cfg, seed), broadcast_buffers=False)
        step = make_step(cfg, model, batches)
        logged = run(step, len(batches) - 1)
        assert ("skipped_steps" in logged[-1]) == (is_spoiled and rank == 0)
        torch.save(state_of(step), f"{folder}/state_{is_spoiled}_{rank}.pth")
    with pytest.raises(DivergenceError):
        run(step, 1, first=4)
    del model, step
    gc.collect()  # a group that outlives the interpreter aborts the process
    dist.destroy_process_group()


@pytest.mark.slow
def test_one_of_two_processes_is_not_finite(seed, python, tmp_path):
    """All leave the step out, the main process tells, and all stop together."""
    python.spawn(_run_process, (str(tmp_path), seed), nprocs=2)
    for rank in range(2):
        state, expected = (torch.load(tmp_path / f"state_{is_spoiled}_{rank}.pth") for is_spoiled in (True, False))
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    first, second = (tmp_path / "log_0.txt").read_text().split("The step of iteration ")[1:]
    assert "loss_cls is nan" in first and "on rank 1" in first and "rank 0" not in first
    assert "rank 1: images: id 10 street/10.jpg, id 11 street/11.jpg" in first
    assert "on rank 0" in second and "rank 1" not in second
    assert not (tmp_path / "log_1.txt").read_text()
    recordings = sorted(path.name for path in (tmp_path / "divergence").iterdir())
    assert recordings == ["iteration_2_rank_1.pth", "iteration_4_rank_0.pth"]
