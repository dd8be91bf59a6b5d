"""Whether the configured anchors give every box a positive one (Lin et al. 2017, section 4, "Anchors").

A box without one is learnt from the anchors that overlap it most, whatever they overlap
(``MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES``), or from none.
"""

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import Boxes, pairwise_iou

from retina_plugin.core.errors import ConfigError
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid

from .findings import WARNING, declare
from .images import training_edges

_LEARNT = "No anchor overlaps the box enough to be positive: it is learnt badly or, without low-quality matches, never."
SMALL = declare(
    "anchors-too-large",
    WARNING,
    f"{_LEARNT} It is smaller than the smallest anchor.",
    "Multiply MODEL.ANCHOR_GENERATOR.SIZES by a factor below 1, or train on larger images (INPUT.MIN_SIZE_TRAIN).",
)
LARGE = declare(
    "anchors-too-small",
    WARNING,
    f"{_LEARNT} It is larger than the largest anchor.",
    "Multiply MODEL.ANCHOR_GENERATOR.SIZES by a factor above 1, or train on smaller images (INPUT.MIN_SIZE_TRAIN).",
)
ELONGATED = declare(
    "anchors-too-square",
    WARNING,
    f"{_LEARNT} It is more elongated than all anchors of its size.",
    "Add its ratio, height / width, to MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS.",
)
SPARSE = declare(
    "anchors-too-sparse",
    WARNING,
    f"{_LEARNT} It lies between the anchors, in size or in place.",
    "Add sizes or ratios to MODEL.ANCHOR_GENERATOR, or train on larger images (INPUT.MIN_SIZE_TRAIN).",
)

_TRIAL_BOXES = 20000
_FACTORS = {SMALL: (0.75, 0.5, 0.35, 0.25), LARGE: (1.5, 2.0, 3.0, 4.0)}


class AnchorCoverage:
    """The best IoU that the anchors of a configuration reach with boxes, at training size."""

    BOXES_AT_ONCE = 2**14

    def __init__(self, cfg):
        """
        Args:
            cfg: of a RetinaNet. The sizes of ``INPUT`` count, cropping does not.

        Raises:
            ConfigError: its levels are not those of the backbone.
        """
        with torch.device("meta"):  # no memory, no time
            backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        absent = [name for name in cfg.MODEL.RETINANET.IN_FEATURES if name not in shapes]
        if absent:
            raise ConfigError([f"MODEL.RETINANET.IN_FEATURES has {absent}, but the backbone makes {list(shapes)}"])
        shapes = [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
        self._strides = [shape.stride for shape in shapes]
        self._divisibility = max(backbone.size_divisibility, 1)
        self._generator = build_anchor_generator(cfg, shapes)
        self._max_size = cfg.INPUT.MAX_SIZE_TRAIN
        bounds = zip(cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.RETINANET.IOU_LABELS[1:])
        self.threshold = min((bound for bound, label in bounds if label == 1), default=1.0)

    def best_iou(self, boxes, sizes, short_edge):
        """The best IoU of each box with any anchor.

        Below the positive threshold, it is that of :func:`detectron2.structures.pairwise_iou` to the last bit. From
        there on, it may be that of an anchor which is as good up to rounding.

        Args:
            boxes: float64 (G, 4), XYWH in pixels of the image, as in the file.
            sizes: float64 (G, 2), width and height of the image.
            short_edge: that the image is resized to; 0 for as it is.

        Returns:
            iou: float32 array (G,).
            boxes: float32 array (G, 4), XYXY at training size, cut at the border.
        """
        scaled, resized = self._resize(boxes, sizes, short_edge)
        padded = np.ceil(resized / self._divisibility).clip(min=1).astype(int) * self._divisibility
        iou = np.zeros(len(boxes), dtype=np.float32)
        groups, group = np.unique(padded, axis=0, return_inverse=True)
        for number, (width, height) in enumerate(groups):
            rows = np.flatnonzero(group.ravel() == number)
            search = self._search(int(width), int(height))
            for start in range(0, len(rows), self.BOXES_AT_ONCE):
                some = rows[start : start + self.BOXES_AT_ONCE]
                iou[some] = search(Boxes(torch.from_numpy(scaled[some]))).numpy()
        return iou, scaled

    def shapes(self):
        """float64 (S, 2): width and height of the anchors of all levels."""
        levels = self._anchors(*(2 * self._divisibility,) * 2)
        sides = torch.cat([level.tensor[:, 2:] - level.tensor[:, :2] for level in levels]).double()
        return np.unique(sides.numpy().round(3), axis=0)

    def _resize(self, boxes, sizes, short_edge):
        # As Detectron2's mapper does it: a box in float32 becomes corners, and these are scaled in float64.
        corners = boxes.astype(np.float32)
        corners[:, 2:] += corners[:, :2]
        originals, which = np.unique(sizes, axis=0, return_inverse=True)
        resized = [self._new_size(int(width), int(height), short_edge) for width, height in originals]
        resized = np.array(resized, dtype=np.float64)[which.ravel()]
        scaled = corners.astype(np.float64) * np.tile(resized / sizes, 2)
        return np.minimum(scaled.clip(min=0), np.tile(resized, 2)).astype(np.float32), resized

    def _new_size(self, width, height, short_edge):
        if short_edge == 0:
            return width, height
        return ResizeShortestEdge.get_output_shape(height, width, short_edge, self._max_size)[::-1]

    def _anchors(self, width, height):
        cells = [(-(-height // stride), -(-width // stride)) for stride in self._strides]
        return self._generator([torch.empty(1, 1, *cell, device="meta") for cell in cells])

    def _search(self, width, height):
        """A function of ``Boxes`` that gives the best IoU of each in an image of this size, padded."""
        anchors = self._anchors(width, height)
        grid = AnchorGrid.find(anchors, getattr(self._generator, "num_cell_anchors", None))
        if grid is None:
            anchors = Boxes.cat(anchors)
            return lambda boxes: torch.cat([pairwise_iou(some, anchors).amax(dim=1) for some in _in_parts(boxes)])

        def search(boxes):
            iou = grid.nearest_iou(boxes)
            below = (iou < self.threshold).nonzero().squeeze(1)
            best = torch.zeros(len(below))
            for pair_iou, box, _ in grid.overlapping_pairs(boxes[below], self.threshold, with_best=True):
                best.scatter_reduce_(0, box, pair_iou, "amax")
            iou[below] = best
            return iou

        return search


def _in_parts(boxes, at_once=64):
    return (boxes[start : start + at_once] for start in range(0, len(boxes), at_once))


def check_anchors(table, cfg, found):
    """Report the boxes that get no positive anchor at any of the smallest and the largest training size.

    Args:
        table (Table): of :func:`check_boxes`.
        cfg: of a RetinaNet.
        found (Findings): gets what is wrong.
    """
    table = table.select(~table.crowd)
    if len(table) == 0:
        return
    coverage, edges = AnchorCoverage(cfg), training_edges(cfg) or [0]
    best = [coverage.best_iou(table.boxes, table.sizes, edge) for edge in edges]
    ious = np.stack([iou for iou, _ in best])
    corners = best[-1][1].astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    # Where no pixel of the image is left, that has been said.
    missed = (ious < coverage.threshold).all(axis=0) & (sides > 0).all(axis=1)
    if not missed.any():
        return
    sides = sides[missed]
    rows, missed_ious = table.select(missed), ious[:, missed]
    kinds = np.array([kind.name for kind in _classify(sides, coverage.shapes(), coverage.threshold)])
    for kind in (SMALL, LARGE, ELONGATED, SPARSE):
        which = kinds == kind.name
        rows.report(found, kind, which, lambda i: _describe(edges, missed_ious[:, i], sides[i]))
        if which.any():
            found.advise(kind, _advice(kind, table, cfg, edges, sides[which]))


def _describe(edges, ious, sides):
    best = " and ".join(f"{iou:.3f}" for iou in ious)
    at = " and ".join(f"{edge} px" for edge in edges) if edges != [0] else "its size"
    return f"best IoU {best} at {at}; {sides[0]:.4g} x {sides[1]:.4g} there"


def _classify(sides, shapes, threshold):
    """The kind of each box that has no positive anchor, given sides (G, 2) and :meth:`AnchorCoverage.shapes`."""
    area, shape_area = sides.prod(axis=1), shapes.prod(axis=1)
    ratios = np.unique((shapes[:, 1] / shapes[:, 0]).round(3))
    for box_sides, box_area in zip(sides, area):
        # Anchors of the box's own area in all ratios there are: if they would not do, no size does.
        own = np.sqrt(box_area) * np.stack([ratios**-0.5, ratios**0.5], axis=1)
        intersection = np.minimum(own, box_sides).prod(axis=1)
        if (intersection / (2 * box_area - intersection)).max() < threshold:
            yield ELONGATED
        elif box_area < shape_area.min():
            yield SMALL
        elif box_area > shape_area.max():
            yield LARGE
        else:
            yield SPARSE


def _advice(kind, table, cfg, edges, sides):
    """A sentence with the best of a few changes, and what it reaches; empty if none of them helps."""
    step = -(-len(table) // _TRIAL_BOXES)
    rows = np.zeros(len(table), dtype=bool)
    rows[::step] = True
    some = table.select(rows)
    now = _share_missed(some, cfg, edges)
    trials = [(_share_missed(some, trial, edges), words) for trial, words in _trials(kind, cfg, sides)]
    if not trials or min(trials)[0] >= now:
        return ""
    share, words = min(trials)
    return f"Here, {words} leaves {share:.2%} of all boxes without a positive anchor, in place of {now:.2%}."


def _share_missed(table, cfg, edges):
    coverage = AnchorCoverage(cfg)
    ious = [coverage.best_iou(table.boxes, table.sizes, edge)[0] for edge in edges]
    return float((np.stack(ious) < coverage.threshold).all(axis=0).mean())


def _trials(kind, cfg, sides):
    generator = cfg.MODEL.ANCHOR_GENERATOR
    for factor in _FACTORS.get(kind, ()):
        trial = _copy(cfg)
        trial.MODEL.ANCHOR_GENERATOR.SIZES = [[size * factor for size in level] for level in generator.SIZES]
        yield trial, f"MODEL.ANCHOR_GENERATOR.SIZES times {factor:g}"
    if kind is ELONGATED:
        long = np.maximum(sides[:, 0] / sides[:, 1], sides[:, 1] / sides[:, 0])
        for ratio in dict.fromkeys(np.quantile(long, (0.25, 0.5, 0.75)).round(1).tolist()):
            trial = _copy(cfg)
            more = [sorted({*level, round(1 / ratio, 3), ratio}) for level in generator.ASPECT_RATIOS]
            trial.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = more
            yield trial, f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS {more}"


def _copy(cfg):
    copy = cfg.clone()
    copy.defrost()
    return copy
