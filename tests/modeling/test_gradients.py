"""Gradients of micro-batches are those of the whole batch."""

import copy
import gc
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retina_plugin.core.errors import ConfigError
from retina_plugin.losses import CLASSIFICATION_LOSS_REGISTRY, LossNormalizer
from retina_plugin.modeling.gradients import compute_gradients, split_batch

from ..engine.small import gradients_of, make_cfg, make_image, make_model, make_step

LOSSES = ["focal", "cross_entropy", "focal_star", "hinge", "ohem", "ohem_1to3"]
BOXES = {"uneven": (5, 1, 0, 2), "a part without boxes": (2, 3, 0, 0), "first part without boxes": (0, 0, 4, 1)}
TOLERANCE = 1e-6  # anchors, and so the box loss, are float32 in any model


# Padding has anchors, and no image of the first part is the largest.
SIZES = [(64, 64), (64, 48), (64, 80), (64, 80)]


def images(seed, boxes, sizes=SIZES):
    return [make_image(seed, i, n, size) for i, (n, size) in enumerate(zip(boxes, sizes))]


def choose(model, loss, mode):
    ohem = ("MODEL.RETINANET.OHEM_BATCH_SIZE", 16) if loss.startswith("ohem") else ()
    cfg = make_cfg("MODEL.RETINANET.CLS_LOSS", loss, *ohem)
    model.classification_loss = CLASSIFICATION_LOSS_REGISTRY.get(loss)(cfg)
    ema = torch.rand(()) * 20 + 1
    model.loss_normalizer = LossNormalizer(mode)
    model.loss_normalizer.ema.copy_(ema)


def compute(model, batch, num_micro_batches, **settings):
    """Losses, gradients and the normalizer's average afterwards; the model's own stays as it was."""
    ema = getattr(model, "module", model).loss_normalizer.ema
    before = ema.clone()
    model.zero_grad()
    with EventStorage():
        result = compute_gradients(model, copy.deepcopy(batch), num_micro_batches, **settings)
    after = ema.clone()
    ema.copy_(before)
    return result.losses, gradients_of(model), after


def assert_same(ours, expected):
    for mine, theirs in zip(ours[:2], expected[:2]):
        assert set(mine) == set(theirs)
        for name, value in theirs.items():
            assert (mine[name] - value).abs().max() <= TOLERANCE * value.abs().max(), name
    assert torch.equal(ours[2], expected[2])


@pytest.fixture(scope="module")
def model():
    return make_model(make_cfg(), 5)


@pytest.mark.parametrize("mode", LossNormalizer.MODES)
@pytest.mark.parametrize(
    "loss, boxes, num_micro_batches",
    [(loss, "uneven", 2) for loss in LOSSES] + [("focal", boxes, num) for boxes in BOXES for num in (2, 4)][1:],
)
def test_parts_give_losses_and_gradients_of_the_whole(model, seed, mode, loss, boxes, num_micro_batches):
    choose(model, loss, mode)
    batch = images(seed, BOXES[boxes])
    with EventStorage() as storage:  # without any of the code that is tested
        ema = model.loss_normalizer.ema.clone()
        model.zero_grad()
        losses = model(copy.deepcopy(batch))
        sum(losses.values()).backward()
        expected = losses, gradients_of(model), model.loss_normalizer.ema.clone()
        model.loss_normalizer.ema.copy_(ema)
    ours = compute(model, batch, num_micro_batches)
    assert_same(ours, expected)
    assert storage.latest()["num_pos_anchors"][0] > 0


@pytest.mark.parametrize("mode", LossNormalizer.MODES)
def test_without_any_box(model, seed, mode):
    choose(model, "focal", mode)
    batch = images(seed, (0, 0, 0, 0))
    ours, expected = (compute(model, batch, n) for n in (2, 1))
    assert ours[0]["loss_box_reg"] == expected[0]["loss_box_reg"] == 0 and expected[0]["loss_cls"] > 0
    ours[0].pop("loss_box_reg"), expected[0].pop("loss_box_reg")
    nothing = [name for name, gradient in expected[1].items() if not gradient.any()]
    assert all(not ours[1][name].any() for name in nothing) and len(nothing) < len(expected[1])
    assert_same(ours, expected)


@pytest.mark.parametrize("mode", LossNormalizer.MODES)
def test_scaled_losses_give_scaled_gradients(model, seed, mode):
    choose(model, "focal", mode)
    batch = images(seed, BOXES["uneven"])
    losses, gradients, ema = compute(model, batch, 2, scale_loss=lambda loss: 1024 * loss)
    assert_same((losses, {name: g / 1024 for name, g in gradients.items()}, ema), compute(model, batch, 1))


def test_in_bf16_parts_are_as_close_to_the_whole_as_its_rounding(seed):
    model = make_model(make_cfg(), 5).float()
    choose(model, "focal", "positives")
    batch = images(seed, BOXES["uneven"])
    ours, expected = (compute(model, batch, n, precision="bf16") for n in (2, 1))
    for name, loss in expected[0].items():
        torch.testing.assert_close(ours[0][name], loss, rtol=0.02, atol=0)
    for name, gradient in expected[1].items():
        if name.startswith("head."):
            cosine = torch.cosine_similarity(ours[1][name].flatten(), gradient.flatten(), dim=0)
            assert cosine > 0.99, name


class MeanLoss(nn.Module):
    """A model without a normalizer: the mean over its images."""

    def __init__(self, as_dict):
        super().__init__()
        self.layer, self.as_dict = nn.Linear(5, 1).double(), as_dict

    def forward(self, batch):
        x = self.layer(torch.stack([image["image"] for image in batch]).flatten(1)).square()
        return {"loss_a": x.mean(), "loss_b": 2 * x.mean()} if self.as_dict else x.mean()


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("num_images, num_micro_batches", [(4, 2), (5, 3), (2, 4)])
def test_other_models_give_the_mean_over_images(as_dict, num_images, num_micro_batches):
    model = MeanLoss(as_dict)
    batch = [{"image": torch.randn(5, 1, 1).double()} for _ in range(num_images)]
    losses = model(batch)
    losses = losses if as_dict else {"total_loss": losses}
    sum(losses.values()).backward()
    expected = gradients_of(model)
    model.zero_grad()
    result = compute_gradients(model, batch, num_micro_batches)
    assert result.num_positives is None and set(result.losses) == set(losses)
    for name, loss in losses.items():
        torch.testing.assert_close(result.losses[name], loss.detach())
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[name])


class SquareRoot(nn.Module):
    """A normalizer of another project, which is not additive over micro-batches and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, num_positives):
        self.calls.append(int(num_positives))
        return num_positives.double().sqrt() + 1


def test_a_foreign_normalizer_is_asked_once_about_the_whole_step(seed):
    model = make_model(make_cfg(), seed)
    model.loss_normalizer = normalizer = SquareRoot()
    batch, found = images(seed, BOXES["uneven"]), []
    for num_micro_batches in (1, 2, 4):
        model.zero_grad()
        result = compute_gradients(model, copy.deepcopy(batch), num_micro_batches)
        found.append((result.losses, gradients_of(model), result.divisor))
        assert normalizer.calls == [int(result.num_positives.sum())] and normalizer.calls[0] > 0
        normalizer.calls.clear()
    assert_same(found[1], found[0]), assert_same(found[2], found[0])
    # The same losses by hand: those of divisor 1, divided.
    undivided = model.compute_losses(copy.deepcopy(batch), model.assign(batch), 1.0)
    for name, loss in undivided.items():
        expected = loss / (math.sqrt(model.assign(batch).num_positives(3)) + 1)
        torch.testing.assert_close(found[0][0][name], expected.detach(), rtol=TOLERANCE, atol=0, check_dtype=False)


def test_an_assigner_that_looks_at_predictions_gets_those_of_its_batch(seed):
    model = make_model(make_cfg(), seed)
    plain, seen = model.assigner, []

    class Looks:
        needs_predictions = True

        def __call__(self, anchors, gt_instances, predictions, *, num_cell_anchors):
            seen.append(predictions)
            return plain(anchors, gt_instances, None, num_cell_anchors=num_cell_anchors)

    batch = images(seed, BOXES["uneven"])
    expected = compute(model, batch, 1)
    model.assigner = Looks()
    assert_same(compute(model, batch, 1), expected)
    assert [x.shape[:1] + x.shape[3:] for x in seen[0].logits] == [(4, 3, 3)] * 3
    with pytest.raises(ConfigError, match="ACCUMULATE_STEPS is 2, but .* looks at predictions"):
        make_step(make_cfg("SOLVER.ACCUMULATE_STEPS", 2), model, [batch])


def test_features_that_are_no_quotient_of_size_and_stride_are_refused(seed):
    model = make_model(make_cfg(), seed)
    batch = images(seed, (1,))
    for level in model.backbone.levels:
        level.padding = (0, 0)
    with pytest.raises(ValueError, match=r"a feature of stride s must have ceil\(size / s\) cells a side"):
        compute_gradients(model, batch, 1)


def test_batches_are_split_in_order():
    sizes = [(4, 9), (6, 3), (5, 5), (1, 1), (2, 2)]
    batch = [{"image": torch.zeros(3, *size), "id": i} for i, size in enumerate(sizes)]
    for num_micro_batches, lengths in [(1, [5]), (2, [2, 3]), (5, [1] * 5), (9, [1] * 5)]:
        parts = split_batch(batch, num_micro_batches)
        assert [len(part) for part in parts] == lengths
        assert [image["id"] for part in parts for image in part] == list(range(5))
        assert all(
            image.get("padded_size") == ((6, 9) if num_micro_batches > 1 else None) for part in parts for image in part
        )


def _run_process(rank, init_file, seed, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    plain = make_model(make_cfg(), 5)
    model = DistributedDataParallel(plain, broadcast_buffers=False)
    reductions = []

    def count(state, bucket):
        reductions.append(bucket.index())
        return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])

    model.register_comm_hook(None, count)
    batch = images(seed, BOXES["uneven"], [(64, 64)] * 4)[2 * rank :][:2]
    found = {}
    for mode in LossNormalizer.MODES:
        for loss in LOSSES:
            torch.manual_seed(seed + len(found))
            choose(plain, loss, mode)
            whole = compute(model, batch, 1)
            of_whole, reductions[:] = len(reductions), []
            found[mode, loss] = whole, compute(model, batch, 2), of_whole, len(reductions)
            reductions.clear()
    torch.save(found, f"{results}/{rank}.pth")
    del model
    gc.collect()  # a group that outlives the interpreter aborts the process
    dist.destroy_process_group()


@pytest.mark.slow
def test_parts_of_two_processes(model, python, tmp_path, seed):
    """Against the same processes without parts, and for positives_global against one process with all images."""
    python.spawn(_run_process, (tmp_path / "init", seed, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    batch = images(seed, BOXES["uneven"], [(64, 64)] * 4)  # processes pad each for itself
    for number, (mode, loss) in enumerate(found[0]):
        ranks = [f[mode, loss] for f in found]
        for whole, in_parts, reductions_of_whole, reductions in ranks:
            assert_same(in_parts, whole)
            assert reductions == reductions_of_whole > 0, "processes wait for each other in the last part alone"
        if mode == "positives_global":
            torch.manual_seed(seed + number)
            choose(model, loss, mode)
            losses, gradients, ema = compute(model, batch, 1)
            mean = {name: (ranks[0][1][0][name] + ranks[1][1][0][name]) / 2 for name in losses}
            assert_same((mean, ranks[0][1][1], ranks[0][1][2]), (losses, gradients, ema))
