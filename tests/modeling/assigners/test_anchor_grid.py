"""Matching on a grid equals Detectron2's IoU of all pairs, bit for bit."""

import math
import random
import weakref

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch.utils._python_dispatch import TorchDispatchMode

from retina_plugin.modeling import AnchorMatcher
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid

THRESHOLDS = [
    ([0.4, 0.5], [0, -1, 1]),
    ([0.5], [0, 1]),
    ([0.1, 0.3, 0.6], [-1, 0, -1, 1]),
    ([0.01, 0.7, 0.7], [0, 1, -1, 0]),
    ([1.0], [-1, 1]),
]


def paper_anchors(height, width):
    sizes = [[4 * stride * 2 ** (k / 3) for k in range(3)] for stride in (8, 16, 32, 64, 128)]
    return make_anchors(height, width, sizes, [[0.5, 1.0, 2.0]], (8, 16, 32, 64, 128), 0.0)


def make_anchors(height, width, sizes, ratios, strides, offset):
    """Anchors of each level, and the number of anchors a cell of each level."""
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=strides, offset=offset)
    maps = [torch.zeros(1, 1, math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]
    return generator(maps), generator.num_cell_anchors


def random_anchors():
    """Random numbers of levels, of cells and of anchors a cell, which may differ between levels."""
    height, width = (random.choice([random.randint(1, 40), random.randint(1, 300)]) for _ in range(2))
    strides = random.choice([(8, 16, 32, 64, 128), (16, 32), (32,)])
    # Sides that are powers of 2 are not rounded, which gives exact ties.
    sizes = [[random.choice([2.0, 4.0, 3.7]) * s * 2**k for k in range(random.randint(1, 3))] for s in strides]
    ratios = random.choice([[[0.5, 1.0, 2.0]], [[1.0]], [[random.uniform(0.2, 5.0) for _ in range(4)]]])
    return make_anchors(height, width, sizes, ratios, strides, random.choice([0.0, 0.5]))


def irregular_anchors():
    """Grids with irregular columns and rows, different for each anchor type."""
    levels, num_cell_anchors = [], []
    for _ in range(2):
        types, rows, columns = (int(n) for n in torch.randint(1, 12, (3,)))
        x, y = (torch.rand(2, types, n).mul(300).sort(dim=2).values for n in (columns, rows))
        for lower, upper in (x, y):
            upper += (lower - upper).amax() + random.uniform(1, 50)
        edges = [x[0].T[None], y[0].T[:, None], x[1].T[None], y[1].T[:, None]]  # (rows, columns, types)
        levels.append(Boxes(torch.stack(torch.broadcast_tensors(*edges), dim=3).reshape(-1, 4)))
        num_cell_anchors.append(types)
    return levels, num_cell_anchors


def boxes_at(center, size):
    return torch.cat([center - size / 2, center + size / 2], dim=1)


def random_boxes(kind, anchors, count=25):
    """``count`` boxes of a kind, on and around the anchors."""
    extent = anchors.tensor.amax(dim=0)[2:]
    center = torch.rand(count, 2) * extent
    size = torch.exp(torch.randn(count, 2) * 0.4 + random.uniform(0.5, 6.5))
    boxes = boxes_at(center, size)
    if kind == "aligned":
        step = random.choice([1.0, 4.0, 8.0])
        boxes = (boxes / step).round() * step
    elif kind == "anchors":
        boxes = anchors.tensor[torch.randint(len(anchors), (count,))] + torch.randint(-1, 2, (count, 1)) / 4
    elif kind == "identical":
        boxes = boxes[:1].repeat(count, 1)
        boxes[-1] = anchors.tensor[random.randrange(len(anchors))]
    elif kind == "outside":
        boxes = boxes_at(center * 3 - extent, size)
    elif kind == "all covering":
        boxes = boxes_at(extent / 2 + torch.zeros(count, 2), size + 3 * extent)
    elif kind == "without area":
        boxes[: count // 2, 2:] = boxes[: count // 2, :2] - torch.randint(0, 3, (count // 2, 2))
        boxes[0] = boxes[0, [0, 1, 0, 3]]
    elif kind == "extreme":
        odd = torch.rand(count, 4) < 0.15
        values = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e18, -1e18, 1e9, 1e-30, 0.0])
        boxes[odd] = values[torch.randint(len(values), (int(odd.sum()),))]
        scale = 10.0 ** torch.randint(-25, 20, (count // 3, 1))
        boxes[: count // 3] = boxes_at(extent / 2 * (torch.rand(count // 3, 1) < 0.5), scale * size[: count // 3])
    return Boxes(boxes)


def coco_like_boxes(count, height=800, width=1344):
    size = torch.exp(torch.randn(count, 1) + 4 + torch.randn(count, 2) * 0.3).clamp(4, 700)
    return Boxes(boxes_at(size / 2 + torch.rand(count, 2) * (torch.tensor([width, height]) - size), size))


KINDS = ["any", "aligned", "anchors", "identical", "outside", "all covering", "without area", "extreme"]


def dense_match(matcher, anchors, gt_boxes):
    """Match by definition, from the IoU of all pairs. numpy's argmax is the first of equals."""
    iou = pairwise_iou(gt_boxes, anchors).numpy()  # (G, R)
    best = iou.max(axis=0)
    thresholds = np.float32(matcher.thresholds)
    labels = np.array(matcher.labels)[np.searchsorted(thresholds, best, side="right")]
    matched = best >= thresholds[0]
    if matcher.allow_low_quality_matches:
        low_quality = ((iou == iou.max(axis=1, keepdims=True)) & (iou > 0)).any(axis=0)
        labels[low_quality] = 1
        matched |= low_quality
    return np.where(matched, iou.argmax(axis=0), 0), labels


def assert_match(matcher, anchors, gt_boxes, grid):
    expected_idxs, expected_labels = dense_match(matcher, anchors, gt_boxes)
    for way in (grid, None):
        matched_idxs, labels = matcher.match(anchors, gt_boxes, way)
        assert matched_idxs.dtype == torch.int64 and labels.dtype == torch.int8
        np.testing.assert_array_equal(labels.numpy(), expected_labels)
        np.testing.assert_array_equal(matched_idxs.numpy(), expected_idxs)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("thresholds, labels", THRESHOLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_both_searches_equal_the_iou_of_all_pairs(kind, thresholds, labels, low_quality):
    levels, num_cell_anchors = random.choice([random_anchors, irregular_anchors])()
    grid, anchors = AnchorGrid.find(levels, num_cell_anchors), Boxes.cat(levels)
    assert grid is not None
    matcher = AnchorMatcher(num_classes=9, thresholds=thresholds, labels=labels, allow_low_quality_matches=low_quality)
    for count in (1, 25):
        assert_match(matcher, anchors, random_boxes(kind, anchors, max(count, 4))[-count:], grid)
    mixed = Boxes.cat([random_boxes(kind, anchors) for kind in KINDS])
    assert_match(matcher, anchors, mixed[torch.randperm(len(mixed))], grid)


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_chunk_size(kind, monkeypatch):
    levels, num_cell_anchors = random_anchors()
    grid, anchors = AnchorGrid.find(levels, num_cell_anchors), Boxes.cat(levels)
    for size in (1, 7, 100):
        monkeypatch.setattr(AnchorGrid, "PAIRS_AT_ONCE", size)
        monkeypatch.setattr(AnchorGrid, "BOXES_AT_ONCE", size)
        monkeypatch.setattr(AnchorMatcher, "PAIRS_AT_ONCE", size * len(anchors))
        assert_match(AnchorMatcher(num_classes=9), anchors, random_boxes(kind, anchors, 15), grid)


@pytest.mark.parametrize("with_best", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_finds_all_pairs_above_the_threshold(kind, with_best):
    """The threshold is the exact IoU of one of the pairs, where rounding decides."""
    levels, num_cell_anchors = random_anchors()
    grid, anchors = AnchorGrid.find(levels, num_cell_anchors), Boxes.cat(levels)
    boxes = random_boxes(kind, anchors)
    iou = pairwise_iou(boxes, anchors)
    for min_iou in [1e-44, *iou[(iou > 0) & (iou <= 1)].tolist()[:: max(1, int((iou > 0).sum()) // 20)]]:
        seen = torch.zeros_like(iou, dtype=torch.int64)
        chunk_of_box = torch.full((len(boxes),), -1)
        for chunk, (value, box, anchor) in enumerate(grid.overlapping_pairs(boxes, min_iou, with_best)):
            assert value.dtype == torch.float32 and torch.equal(value, iou[box, anchor])
            seen.index_put_((box, anchor), torch.ones_like(box), accumulate=True)
            assert (chunk_of_box[box] == -1).all()
            chunk_of_box[box] = chunk
        wanted = iou >= min_iou
        if with_best:
            wanted |= (iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)
        assert (seen <= 1).all() and (seen[wanted] == 1).all()


@pytest.mark.parametrize("coordinate", range(4))
def test_one_anchor_off_the_grid_is_detected(coordinate):
    levels, num_cell_anchors = make_anchors(100, 60, [[32.0, 50.0]], [[0.5, 1.0]], (16, 8), 0.0)
    assert AnchorGrid.find(levels, num_cell_anchors) is not None
    for value in (2.0**-10, math.nan, math.inf):
        moved = [level.clone() for level in levels]
        tensor = random.choice(moved).tensor
        tensor[random.randrange(len(tensor)), coordinate] += value
        assert AnchorGrid.find(moved, num_cell_anchors) is None


def test_anchors_that_are_not_a_grid():
    levels, num_cell_anchors = make_anchors(100, 60, [[32.0, 50.0]], [[0.5, 1.0]], (16, 8), 0.0)
    first, second = (level.tensor for level in levels)
    cells = first.view(7, 4, 4, 4)  # rows, columns, A, edges
    no_grids = {
        "any order": first[torch.randperm(len(first))],
        "columns first": cells.transpose(0, 1).reshape(-1, 4),
        "from right to left": cells.flip(1).reshape(-1, 4),
        "upwards": cells.flip(0).reshape(-1, 4),
        "left and right swapped": first[:, [2, 1, 0, 3]],
        "right edges from right to left": first * torch.tensor([1, 1, -1, 1]) + torch.tensor([0, 0, 500, 0]),
        "left edges from right to left": first * torch.tensor([-1, 1, 1, 1]) + torch.tensor([0, 0, 500, 0]),
        "no height": first[:, [0, 1, 2, 1]],
        "half a cell": first[:-2],
        "half a row": first[:-8],
        "empty": first[:0],
        "one cell, infinite": torch.tensor([[-math.inf, -math.inf, math.inf, math.inf]]).repeat(4, 1),
        "one cell, not a number": torch.full((4, 4), math.nan),
    }
    for name, no_grid in no_grids.items():
        assert AnchorGrid.find([Boxes(no_grid), Boxes(second)], num_cell_anchors) is None, name
    assert AnchorGrid.find([Boxes(edges.T.contiguous().T) for edges in (first, second)], num_cell_anchors) is not None
    for unknown in (None, [4], [4, 4, 4], [4, 3]):
        assert AnchorGrid.find(levels, unknown) is None, unknown
    assert AnchorGrid.find([level.to("meta") for level in levels], num_cell_anchors) is None


@pytest.mark.parametrize("low_quality", [True, False])
def test_no_host_synchronization_on_other_devices(low_quality):
    """Meta tensors have no values to synchronize for."""
    anchors, boxes = torch.rand(500, 4, device="meta"), torch.rand(7, 4, device="meta")
    matched_idxs, labels = AnchorMatcher(num_classes=9, allow_low_quality_matches=low_quality).match(
        Boxes(anchors), Boxes(boxes)
    )
    assert matched_idxs.shape == labels.shape == (500,)
    assert matched_idxs.device.type == labels.device.type == "meta"


@pytest.mark.parametrize("is_known", [True, False])
def test_targets_of_a_batch_with_and_without_known_cell_anchors(is_known):
    levels, num_cell_anchors = random_anchors()
    anchors = Boxes.cat(levels)
    batch = []
    for count in (20, 0, 5):
        boxes = random_boxes(random.choice(KINDS), anchors)[:count]
        batch.append(Instances((300, 300), gt_boxes=boxes, gt_classes=torch.randint(0, 9, (count,))))
    assigner = AnchorMatcher(num_classes=9)
    targets = assigner(levels, batch, num_cell_anchors=num_cell_anchors if is_known else None)
    labels, boxes = targets.labels, targets.boxes
    assert labels.shape == (3, len(anchors)) and labels.dtype == torch.int64
    assert boxes.shape == (3, len(anchors), 4) and boxes.dtype == torch.float32
    assert targets.scores is None
    for image_labels, image_boxes, image in zip(labels, boxes, batch):
        if len(image) == 0:
            assert (image_labels == 9).all()
            continue
        idxs, kinds = (torch.from_numpy(x) for x in dense_match(assigner, anchors, image.gt_boxes))
        expected = torch.where(kinds == 1, image.gt_classes[idxs], torch.where(kinds == 0, 9, -1))
        assert torch.equal(image_labels, expected)
        assert torch.equal(image_boxes[kinds == 1], image.gt_boxes.tensor[idxs[kinds == 1]])


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("thresholds, labels", THRESHOLDS)
def test_where_float32_underflows(thresholds, labels, low_quality):
    levels, num_cell_anchors = random.choice([random_anchors, irregular_anchors])()
    matcher = AnchorMatcher(num_classes=9, thresholds=thresholds, labels=labels, allow_low_quality_matches=low_quality)
    # Areas down to the smallest float32 numbers, and such IoUs with boxes that are much larger.
    for exponent, enlarge in ((-75, 0), (-78, 0), (-80, 0), (-20, 72), (-20, 76)):
        small = [Boxes(level.tensor * 2.0**exponent) for level in levels]
        anchors = Boxes.cat(small)
        boxes = Boxes.cat([random_boxes(kind, Boxes.cat(levels)) for kind in ("any", "anchors", "all covering")])
        boxes = Boxes(boxes.tensor * 2.0 ** (exponent + enlarge))
        assert_match(matcher, anchors, boxes, AnchorGrid.find(small, num_cell_anchors))


def test_computes_few_pairs_below_the_threshold():
    levels, num_cell_anchors = paper_anchors(800, 1344)
    grid = AnchorGrid.find(levels, num_cell_anchors)
    center = torch.rand(100, 2) * torch.tensor([1344.0, 800.0])
    scenes = [
        (coco_like_boxes(100), 1.6),
        (Boxes(boxes_at(center, torch.tensor([4.0, 300.0]))), 4),
        # There are anchors of three ratios with nearly the best IoU.
        (Boxes(boxes_at(center, 5 * torch.rand(100, 2) + 1)), 6),
    ]
    for boxes, at_most in scenes:
        chunks = list(grid.overlapping_pairs(boxes, 0.4, with_best=True))
        iou = pairwise_iou(boxes, Boxes.cat(levels))
        wanted = (iou >= 0.4) | ((iou == iou.amax(dim=1, keepdim=True)) & (iou > 0))
        assert len(chunks) == 1 and len(chunks[0][0]) < at_most * wanted.sum()
    too_large = Boxes(boxes_at(center, torch.full((100, 2), 1e25)))
    assert sum(len(iou) for iou, _, _ in grid.overlapping_pairs(too_large, 0.4, with_best=True)) == 0


class Memory(TorchDispatchMode):
    """Records the bytes of all tensors alive, now and at the peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, storage.nbytes())
        return out

    def _forget(self, size):
        self.now -= size


@pytest.mark.parametrize("scene", ["coco-like", "all covering", "tiny"])
def test_memory_of_a_thousand_boxes(scene):
    levels, num_cell_anchors = paper_anchors(800, 1344)
    anchors = Boxes.cat(levels)
    boxes = coco_like_boxes(1000)
    if scene == "all covering":
        boxes = Boxes(torch.tensor([[-9.0, -9.0, 1400.0, 900.0]]).repeat(1000, 1))
    elif scene == "tiny":
        boxes = Boxes(boxes_at(torch.rand(1000, 2) * 800, 5 * torch.rand(1000, 2) + 1))
    with Memory() as memory:
        AnchorMatcher(num_classes=9, thresholds=[0.05], labels=[0, 1]).match(
            anchors, boxes, AnchorGrid.find(levels, num_cell_anchors)
        )
    assert len(anchors) == 201600
    assert 4 * 201600 < memory.peak < 50e6
