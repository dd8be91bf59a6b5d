"""The search finds the anchors that brute force finds."""

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou

from retina_plugin.modeling.anchor_coverage import AnchorCoverage
from retina_plugin.tools.anchors.search import AnchorSearch, Candidate

from ...engine.small import make_cfg
from .sets import random_boxes

STRIDES = (8, 16, 32)


def corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)


def make_search(boxes):
    coverage, sizes = AnchorCoverage(make_cfg()), np.array([[128, 128]] * len(boxes))
    return AnchorSearch(boxes, coverage.nearest_offsets(boxes, sizes), STRIDES, [0.4, 0.5])


def brute_force(boxes, candidate):
    """The best IoU with every anchor that Detectron2 generates for such sizes."""
    sizes = [[size * stride / 8 for size in candidate.sizes] for stride in STRIDES]
    ratios = [list(candidate.ratios)]
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=list(STRIDES), offset=0.0)
    anchors = Boxes.cat(generator([torch.empty(1, 1, 128 // s, 128 // s) for s in STRIDES]))
    return pairwise_iou(Boxes(torch.from_numpy(boxes)), anchors).amax(dim=1)


def random_candidate(rng, num_scales, num_ratios):
    return Candidate(tuple(rng.uniform(9, 60, num_scales).tolist()), tuple(rng.uniform(0.4, 2.5, num_ratios).tolist()))


@pytest.fixture
def boxes(seed):
    rng = np.random.default_rng(seed)
    return corners(random_boxes(rng, 60, np.exp(rng.uniform(2, 4.5, 60)), np.exp(rng.normal(0, 0.3))))


def test_the_score_is_that_of_all_anchors(boxes, seed):
    search, rng = make_search(boxes), np.random.default_rng(seed)
    for shape in ((1, 1), (3, 2), (2, 3)):
        candidate = random_candidate(rng, *shape)
        iou = brute_force(boxes, candidate)
        torch.testing.assert_close(search.best_iou(candidate), iou, rtol=1e-4, atol=1e-5)
        near = ((iou - 0.4).abs() < 1e-4) | ((iou - 0.5).abs() < 1e-4)  # rounding decides
        score = iou.mean() + (iou >= 0.4).float().mean() + (iou >= 0.5).float().mean()
        assert abs(search.score(candidate) - score.item()) < 1e-4 + near.sum() / len(boxes)


def test_no_anchor_of_a_fine_grid_is_better(boxes):
    search = make_search(boxes)
    best = search.search(1, 1)
    grid = [Candidate((float(s),), (float(r),)) for s in np.geomspace(8, 64, 50) for r in np.geomspace(0.3, 3, 25)]
    assert search.score(best) >= max(map(search.score, grid)) - 0.03  # two of 60 boxes, at one threshold


def test_no_random_anchors_are_better(boxes, seed):
    search, rng = make_search(boxes), np.random.default_rng(seed)
    best = search.search(2, 2)
    assert search.score(best) >= max(search.score(random_candidate(rng, 2, 2)) for _ in range(400))
    assert best == search.search(2, 2)
    assert list(best.sizes) == sorted(best.sizes) and list(best.ratios) == sorted(best.ratios)


@pytest.mark.parametrize("width, height", [(20, 20), (14, 42), (60, 24)])
def test_boxes_of_one_shape_get_that_shape(width, height, seed):
    """Centered on anchors of all levels, they are matched exactly by their own size, or a half or quarter of it."""
    x, y = np.random.default_rng(seed).integers(1, 3, (2, 30)) * 32.0
    shape = np.array([width, height]) / 2
    centers = np.stack([x, y], axis=1)
    boxes = np.concatenate([centers - shape, centers + shape], axis=1).astype(np.float32)
    search = make_search(boxes)
    (size,), (ratio,) = search.search(1, 1)
    factor = (width * height) ** 0.5 / size
    assert ratio == pytest.approx(height / width, rel=0.02)
    assert min(abs(factor - power) for power in (1, 2, 4)) < 0.05
    assert search.score(Candidate((size,), (ratio,))) > 2.97


def test_a_configured_start_is_never_lost(boxes, seed):
    search = make_search(boxes)
    start = random_candidate(np.random.default_rng(seed), 3, 1)
    assert search.score(search.search(3, 1, [start])) >= search.score(start) - 1e-6
