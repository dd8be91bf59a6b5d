"""Hard example mining against a brute-force selection in numpy."""

import math
from functools import partial

import numpy as np
import pytest
import torch

import retina_plugin.losses.ohem
from retina_plugin.losses import LossContext, OnlineHardExampleMining, Targets

from .closed_forms import call_module, closed_form

K = 3  # classes
CELLS, ANCHORS = [(6, 5), (3, 3), (1, 2)], 3  # of each level, and anchors a cell: R = 123
R = sum(h * w for h, w in CELLS) * ANCHORS


def iou(box, boxes):
    w, h = (np.minimum(box[i + 2], boxes[:, i + 2]) - np.maximum(box[i], boxes[:, i]) for i in (0, 1))
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])  # noqa: E731
    overlap = w.clip(0) * h.clip(0)
    return overlap / (area(box) + area(boxes) - overlap)


def mine_slowly(scores, labels, boxes, batch_size, nms_thresh, one_to_three):
    """The anchors that one image keeps: suppression over all its boxes, then the choice."""
    alive, kept = labels >= 0, []
    for r in np.argsort(-scores):
        if alive[r]:
            kept.append(r)
            alive &= iou(boxes[r], boxes) <= nms_thresh
    if not one_to_three:
        return kept[:batch_size]
    positives = [r for r in kept if labels[r] < K][: batch_size // 4]
    negatives = [r for r in kept if labels[r] == K]
    return positives + negatives[: 3 * max(len(positives), 1)]


def logits_of_hardness(hardness, labels, alpha=None):
    """Float32 logits (..., K) whose cross entropy, summed over classes in random shares, is ``hardness`` (...)."""
    share = np.random.uniform(0.2, 1, (*hardness.shape, K))
    is_class = labels.numpy()[..., None] == np.arange(K)
    alpha_t = 1 if alpha is None else np.where(is_class, alpha, 1 - np.asarray(alpha))
    cross_entropy = hardness[..., None] * share / share.sum(axis=-1, keepdims=True) / alpha_t
    x_t = -np.log(np.expm1(cross_entropy))
    return torch.from_numpy(np.where(is_class, x_t, -x_t)).float()


def well_separated(*shape):
    """Random order of hardness in each row; the gaps are thousands of times what float32 rounds."""
    return np.stack([np.random.permutation(np.linspace(0.05, 8, shape[-1])) for _ in range(shape[0])])


def random_boxes(*shape, crowds):
    """Boxes (..., 4) around a few centers, on whole pixels: their IoUs are exact fractions in any precision."""
    center = np.random.randint(40, 200, (crowds, 2))[np.random.randint(crowds, size=shape)]
    corner = center + np.random.randint(-6, 7, (*shape, 2))
    return torch.from_numpy(np.concatenate([corner, corner + np.random.randint(20, 36, (*shape, 2))], axis=-1)).float()


def random_labels(*shape, positives):
    draw = torch.rand(shape)
    return torch.where(draw < positives, torch.randint(K, shape), torch.where(draw < 0.9, K, -1))


def by_level(x, cells=CELLS):
    """(N, R, ...) -> list of (N, Hl, Wl, A, ...)."""
    counts = [h * w * ANCHORS for h, w in cells]
    return [y.unflatten(1, (h, w, ANCHORS)) for y, (h, w) in zip(x.split(counts, dim=1), cells)]


def as_head_output(x):
    """The same numbers (N, H, W, A, K) in the memory order of a convolution's output."""
    return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def mine(ohem, logits, labels, boxes, cells=CELLS):
    """The labels (N, R) that are mined; logits by level, labels (N, R), predicted boxes (N, R, 4)."""
    context = LossContext(partial(by_level, boxes, cells))
    return ohem.mine(logits, Targets(labels, torch.zeros(*labels.shape, 4)), context)


def check_mining(hardness, labels, boxes, cells=CELLS, alpha=None, **settings):
    """Compare with the brute force; returns, for each image, what is mined, as ranks of hardness (0 the hardest)."""
    logits = logits_of_hardness(hardness, labels, alpha)
    scores = closed_form("cross_entropy", logits, labels, alpha=alpha)[0].sum(axis=-1)
    expected, ranks = torch.full_like(labels, -1), []
    for i in range(len(labels)):
        np.testing.assert_allclose(scores[i], np.where(labels[i] >= 0, hardness[i], 0), rtol=1e-4)
        mined = mine_slowly(scores[i], labels[i].numpy(), boxes[i].double().numpy(), **settings)
        expected[i, mined] = labels[i, mined]
        ranks.append([int((scores[i] > scores[i, r]).sum()) for r in mined])
    levels = [as_head_output(x) for x in by_level(logits, cells)]
    ohem = OnlineHardExampleMining(alpha=alpha, **settings)
    assert torch.equal(mine(ohem, levels, labels, boxes, cells), expected)
    return ranks


@pytest.mark.parametrize("alpha", [None, [0.2, 0.5, 0.9]])
@pytest.mark.parametrize("one_to_three", [False, True])
@pytest.mark.parametrize("nms_thresh", [0.0, 0.5, 0.7, 1.0])
def test_mines_what_brute_force_mines(nms_thresh, one_to_three, alpha):
    for batch_size in (4, 18, 64, 1000):
        for crowds, positives in ((2, 0.02), (8, 0.3), (40, 0.8)):
            labels = random_labels(4, R, positives=positives)
            labels[1][labels[1] < K] = K  # an image without boxes
            labels[2] = -1  # and one where all is ignored
            ranks = check_mining(
                well_separated(4, R),
                labels,
                random_boxes(4, R, crowds=crowds),
                alpha=alpha,
                batch_size=batch_size,
                nms_thresh=nms_thresh,
                one_to_three=one_to_three,
            )
            assert 0 < len(ranks[1]) <= (3 if one_to_three else batch_size) and ranks[2] == []


def test_no_suppression_keeps_the_hardest():
    labels = random_labels(2, R, positives=0.1)
    boxes = random_boxes(1, 1, crowds=1).expand(2, R, 4)  # all the same
    for batch_size in (4, 50):
        ranks = check_mining(
            well_separated(2, R), labels, boxes, batch_size=batch_size, nms_thresh=1.0, one_to_three=False
        )
        assert ranks == [list(range(batch_size))] * 2


def test_of_equal_boxes_the_hardest_stays_whatever_its_class():
    labels = random_labels(1, R, positives=0.5)
    boxes = random_boxes(1, 1, crowds=1).expand(1, R, 4)
    ranks = check_mining(well_separated(1, R), labels, boxes, batch_size=64, nms_thresh=0.5, one_to_three=False)
    assert ranks == [[0]]


def test_one_to_three_caps_positives_at_a_quarter_with_three_negatives_for_each():
    for num_positives, batch_size, mined in ((50, 16, (4, 12)), (50, 18, (4, 12)), (2, 16, (2, 6)), (0, 16, (0, 3))):
        labels = torch.full((1, R), K)
        labels[0, torch.randperm(R)[:num_positives]] = 1
        boxes = torch.arange(R).view(1, R, 1) * 50.0 + torch.tensor([0.0, 0.0, 40.0, 40.0])  # apart from each other
        logits = logits_of_hardness(well_separated(1, R), labels)
        ohem = OnlineHardExampleMining(batch_size=batch_size, one_to_three=True)
        ours = mine(ohem, by_level(logits), labels, boxes)
        assert ((ours == 1).sum(), (ours == K).sum()) == mined


LARGE = [(25, 40)]  # R = 3000


@pytest.mark.parametrize("one_to_three", [False, True])
@pytest.mark.parametrize("crowds", [1, 5, 300])
def test_finds_what_lies_far_below_crowds_of_harder_anchors(crowds, one_to_three):
    """The search starts at the 8 B hardest anchors. Here those, and thousands more, overlap a few boxes."""
    hardness, batch_size = well_separated(1, 3000), 8
    labels = random_labels(1, 3000, positives=0.1)
    crowded = hardness > np.quantile(hardness, 0.2)  # the 2400 hardest
    boxes = torch.where(
        torch.from_numpy(crowded)[..., None],
        random_boxes(1, 1, crowds=1) + torch.randint(-1, 2, (1, 3000, 4)),
        random_boxes(1, 3000, crowds=crowds) + 300,
    )
    (ranks,) = check_mining(
        hardness, labels, boxes, LARGE, batch_size=batch_size, nms_thresh=0.5, one_to_three=one_to_three
    )
    assert max(ranks) > 2000 > 30 * 8 * batch_size  # dozens of blocks further


def test_one_to_three_finds_the_easiest_positives():
    hardness, labels = well_separated(1, 3000), torch.full((1, 3000), K)
    easiest = np.argsort(hardness[0])[:2]
    labels[0, easiest[0]], labels[0, easiest[1]] = 0, 2
    boxes = random_boxes(1, 3000, crowds=50)
    boxes[0, easiest] = torch.tensor([[500.0, 500.0, 550.0, 550.0], [500.0, 600.0, 550.0, 650.0]])
    settings = {"batch_size": 8, "nms_thresh": 0.5, "one_to_three": True}
    (ranks,) = check_mining(hardness, labels, boxes, LARGE, **settings)
    assert ranks[:2] == [2998, 2999] and len(ranks) == 8
    boxes[0, easiest] = boxes[0, hardness.argmax()].clone()  # now a harder negative suppresses both
    (ranks,) = check_mining(hardness, labels, boxes, LARGE, **settings)
    assert len(ranks) == 3 and max(ranks) < 2998


@pytest.mark.parametrize("one_to_three", [False, True])
def test_looks_no_further_than_it_must(one_to_three, monkeypatch):
    lengths, nms = [], retina_plugin.losses.ohem.nms
    monkeypatch.setattr(retina_plugin.losses.ohem, "nms", lambda b, *args: lengths.append(len(b)) or nms(b, *args))
    hardness = well_separated(1, 3000)
    labels = torch.where(torch.from_numpy(hardness > np.quantile(hardness, 0.999)), 1, K)  # the hardest are positive
    boxes = torch.arange(3000).view(1, 3000, 1) * 50.0 + torch.tensor([0.0, 0.0, 40.0, 40.0])
    check_mining(hardness, labels, boxes, LARGE, batch_size=32, nms_thresh=0.5, one_to_three=one_to_three)
    assert lengths == [8 * 32]


@pytest.mark.parametrize("alpha", [None, 0.25, [0.2, 0.5, 0.9]])
@pytest.mark.parametrize("one_to_three", [False, True])
def test_loss_is_cross_entropy_of_mined_anchors_alone(one_to_three, alpha, assert_close):
    labels = random_labels(2, R, positives=0.2)
    logits = logits_of_hardness(well_separated(2, R), labels).requires_grad_()
    boxes = random_boxes(2, R, crowds=10).requires_grad_()
    calls = []
    ohem = OnlineHardExampleMining(alpha=alpha, batch_size=16, one_to_three=one_to_three)
    targets = Targets(labels, torch.zeros(2, R, 4))
    loss = ohem(by_level(logits), targets, LossContext(lambda: calls.append(1) or by_level(boxes)), 1.0)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32
    assert calls == [1] and boxes.grad is None

    scores = closed_form("cross_entropy", logits, labels, alpha=alpha)[0].sum(axis=-1)
    mined_labels = torch.full_like(labels, -1)
    for i in range(2):
        mined = mine_slowly(scores[i], labels[i].numpy(), boxes[i].detach().double().numpy(), 16, 0.5, one_to_three)
        mined_labels[i, mined] = labels[i, mined]
    assert 0 < (mined_labels >= 0).sum() <= 32
    value, gradient = closed_form("cross_entropy", logits, mined_labels, alpha=alpha)
    assert_close("ohem: value", loss.detach(), value.sum(), tolerance=2e-6)
    assert_close("ohem: gradient", logits.grad, gradient, tolerance=2e-6)
    assert (logits.grad[mined_labels < 0] == 0).all() and (logits.grad[mined_labels >= 0] != 0).all()


@pytest.mark.parametrize("one_to_three", [False, True])
def test_soft_targets_are_mined_and_summed_with_their_soft_loss(one_to_three, assert_close):
    """In double precision, in which no two anchors are equally hard."""
    labels, alpha = random_labels(2, R, positives=0.5), 0.4
    logits = logits_of_hardness(well_separated(2, R), labels).double().requires_grad_()
    scores, boxes = torch.rand(2, R, dtype=torch.float64), random_boxes(2, R, crowds=10).double()
    ohem = OnlineHardExampleMining(alpha=alpha, batch_size=16, one_to_three=one_to_three)
    loss = call_module(ohem, by_level(logits), by_level(labels), scores=by_level(scores), boxes=by_level(boxes))
    loss.backward()
    hardness = closed_form("cross_entropy", logits, labels, alpha=alpha, scores=scores)[0].sum(axis=-1)
    mined_labels = torch.full_like(labels, -1)
    for i in range(2):
        mined = mine_slowly(hardness[i], labels[i].numpy(), boxes[i].numpy(), 16, 0.5, one_to_three)
        mined_labels[i, mined] = labels[i, mined]
    value, gradient = closed_form("cross_entropy", logits, mined_labels, alpha=alpha, scores=scores)
    assert_close("ohem, soft targets: value", loss.detach(), value.sum(), tolerance=1e-12)
    assert_close("ohem, soft targets: gradient", logits.grad, gradient, tolerance=1e-12)


@pytest.mark.parametrize("one_to_three", [False, True])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_ignored_anchors_are_never_mined(one_to_three, garbage):
    labels = random_labels(2, R, positives=0.2)
    logits, boxes = logits_of_hardness(well_separated(2, R), labels), random_boxes(2, R, crowds=10)
    ohem = OnlineHardExampleMining(batch_size=64, one_to_three=one_to_three)
    expected = call_module(ohem, by_level(logits), by_level(labels), boxes=by_level(boxes))
    logits[labels < 0] = boxes[labels < 0] = garbage
    logits.requires_grad_()
    loss = call_module(ohem, by_level(logits), by_level(labels), boxes=by_level(boxes))
    loss.backward()
    assert torch.equal(loss.detach(), expected) and (logits.grad[labels < 0] == 0).all()


@pytest.mark.parametrize("one_to_three", [False, True])
def test_no_anchor_counted_gives_zero_with_gradient(one_to_three):
    ohem = OnlineHardExampleMining(one_to_three=one_to_three)
    for cells in (CELLS, [(0, 4), (0, 2)]):
        count = sum(h * w for h, w in cells) * ANCHORS
        logits = torch.randn(2, count, K, requires_grad=True)
        labels = torch.full((2, count), -1)
        boxes = by_level(torch.zeros(2, count, 4), cells)
        loss = call_module(ohem, by_level(logits, cells), by_level(labels, cells), boxes=boxes)
        loss.backward()
        assert loss == 0 and loss.dtype == torch.float32 and (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    labels, boxes = random_labels(2, R, positives=0.2), random_boxes(2, R, crowds=10)
    half = logits_of_hardness(well_separated(2, R), labels).to(dtype)
    ohem = OnlineHardExampleMining(batch_size=16)
    expected = call_module(ohem, by_level(half.float()), by_level(labels), boxes=by_level(boxes))
    with torch.autocast("cpu", dtype=dtype):
        loss = call_module(ohem, by_level(half), by_level(labels), boxes=by_level(boxes))
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


@pytest.mark.parametrize("one_to_three", [False, True])
def test_double_precision(one_to_three):
    labels, boxes = random_labels(2, R, positives=0.2), random_boxes(2, R, crowds=10)
    logits = logits_of_hardness(well_separated(2, R), labels).double()
    ohem = OnlineHardExampleMining(alpha=np.array([0.2, 0.5, 0.9]), batch_size=16, one_to_three=one_to_three)
    loss = call_module(ohem, by_level(logits), by_level(labels), boxes=by_level(boxes))
    single = call_module(ohem, by_level(logits.float()), by_level(labels), boxes=by_level(boxes))
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(single.item(), rel=1e-5)


def test_alpha_per_class_moves_with_the_module_and_is_not_saved():
    ohem = OnlineHardExampleMining(alpha=[0.1, 0.5, 0.9])
    assert list(ohem.state_dict()) == [] and list(ohem.parameters()) == []
    assert [b.device.type for b in ohem.to("meta").buffers()] == ["meta"]


@pytest.mark.parametrize(
    "bad, message",
    [({"batch_size": n}, "batch size.*at least 4") for n in (3, 0, -8, 130.5, math.nan)]
    + [({"nms_thresh": t}, r"NMS threshold is an IoU in \[0, 1\]") for t in (-0.1, 1.1, math.nan)]
    + [({"alpha": a}, r"alpha.*\[0, 1\]") for a in (-0.5, 2.0, [0.5, 1.5, 0.5])],
)
def test_parameters_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        OnlineHardExampleMining(**bad)
