"""Checks that the configured anchors give every box a positive one (Lin et al. 2017, section 4, "Anchors").

A box without a positive anchor is learned only from the anchors that overlap it most
(``MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES``), whatever their IoU, or never.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import Boxes, pairwise_iou

from retina_plugin.core.errors import ConfigError
from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.entries import Table
from retina_plugin.data.checks.findings import Kind, warning_kind
from retina_plugin.data.checks.images import training_edges
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid

_HARM = "No anchor overlaps the box enough to be positive: it is learned badly or, without low-quality matches, never."
SMALL = warning_kind(f"""anchors-too-large: {_HARM} It is smaller than the smallest anchor. Multiply
    MODEL.ANCHOR_GENERATOR.SIZES by a factor below 1, or train on larger images (INPUT.MIN_SIZE_TRAIN).""")
LARGE = warning_kind(f"""anchors-too-small: {_HARM} It is larger than the largest anchor. Multiply
    MODEL.ANCHOR_GENERATOR.SIZES by a factor above 1, or train on smaller images (INPUT.MIN_SIZE_TRAIN).""")
ELONGATED = warning_kind(f"""anchors-too-square: {_HARM} It is more elongated than all anchors of its size. Add its
    ratio, height / width, to MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS.""")
SPARSE = warning_kind(f"""anchors-too-sparse: {_HARM} It lies between the anchors, in size or in place. Add sizes or
    ratios to MODEL.ANCHOR_GENERATOR, or train on larger images (INPUT.MIN_SIZE_TRAIN).""")

_TRIAL_BOXES = 20000
_FACTORS = {SMALL: (0.75, 0.5, 0.35, 0.25), LARGE: (1.5, 2.0, 3.0, 4.0)}


class AnchorCoverage:
    """The best IoU of boxes with the anchors of a configuration, at training size."""

    BOXES_AT_ONCE = 2**14

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: of a RetinaNet. Training sizes are those of ``INPUT``, without cropping.

        Raises:
            ConfigError: the backbone lacks a level that the keys name.
        """
        with torch.device("meta"):  # no memory, no time
            backbone = build_backbone(cfg)
        levels = backbone.output_shape()
        absent = [name for name in cfg.MODEL.RETINANET.IN_FEATURES if name not in levels]
        if absent:
            raise ConfigError([f"MODEL.RETINANET.IN_FEATURES has {absent}, but the backbone makes {list(levels)}"])
        levels = [levels[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
        self._strides = [level.stride for level in levels]
        self._divisibility = max(backbone.size_divisibility, 1)
        self._generator = build_anchor_generator(cfg, levels)
        self._max_size = cfg.INPUT.MAX_SIZE_TRAIN
        bounds = zip(cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.RETINANET.IOU_LABELS[1:])
        self.threshold = min((bound for bound, label in bounds if label == 1), default=1.0)

    def best_iou(self, boxes: np.ndarray, sizes: np.ndarray, short_edge: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute the best IoU of each box with any anchor.

        Below the positive threshold, it is bitwise that of :func:`detectron2.structures.pairwise_iou`. From the
        threshold on, it may be the IoU of an anchor that is equally good up to rounding.

        Args:
            boxes: float64 (G, 4), XYWH in pixels of the image, as in the file.
            sizes: float64 (G, 2), width and height of the image.
            short_edge: length that the short side of the image is resized to; 0 for no resizing.

        Returns:
            The IoUs, float32 (G,), and the boxes at training size, float32 (G, 4), XYXY, cut at the border.
        """
        scaled, resized = self._resize(boxes, sizes, short_edge)
        padded = np.ceil(resized / self._divisibility).clip(min=1).astype(int) * self._divisibility
        iou = np.zeros(len(boxes), dtype=np.float32)
        groups, group = np.unique(padded, axis=0, return_inverse=True)
        for number, (width, height) in enumerate(groups.tolist()):
            rows = np.flatnonzero(group.ravel() == number)
            search = self._search(width, height)
            for start in range(0, len(rows), self.BOXES_AT_ONCE):
                some = rows[start : start + self.BOXES_AT_ONCE]
                iou[some] = search(Boxes(torch.from_numpy(scaled[some]))).numpy()
        return iou, scaled

    def anchor_sides(self) -> np.ndarray:
        """Width and height of the anchor types of all levels, float64 (number of types, 2)."""
        levels = self._anchors(2 * self._divisibility, 2 * self._divisibility)
        sides = torch.cat([level.tensor[:, 2:] - level.tensor[:, :2] for level in levels]).double()
        return np.unique(sides.numpy().round(3), axis=0)

    def _resize(self, boxes: np.ndarray, sizes: np.ndarray, short_edge: int) -> tuple[np.ndarray, np.ndarray]:
        # As Detectron2's mapper: a float32 box is converted to corners, which are scaled in float64.
        corners = boxes.astype(np.float32)
        corners[:, 2:] += corners[:, :2]
        originals, which = np.unique(sizes, axis=0, return_inverse=True)
        new_sizes = [self._new_size(int(width), int(height), short_edge) for width, height in originals]
        resized = np.array(new_sizes, dtype=np.float64)[which.ravel()]
        scaled = corners.astype(np.float64) * np.tile(resized / sizes, 2)
        return np.minimum(scaled.clip(min=0), np.tile(resized, 2)).astype(np.float32), resized

    def _new_size(self, width: int, height: int, short_edge: int) -> tuple[int, int]:
        if short_edge == 0:
            return width, height
        return ResizeShortestEdge.get_output_shape(height, width, short_edge, self._max_size)[::-1]

    def _anchors(self, width: int, height: int) -> list[Boxes]:
        cells = [(-(-height // stride), -(-width // stride)) for stride in self._strides]
        return self._generator([torch.empty(1, 1, *cell, device="meta") for cell in cells])

    def _search(self, width: int, height: int) -> Callable[[Boxes], torch.Tensor]:
        """A function that returns the best IoU of each of its boxes, for a padded image of this size."""
        anchors = self._anchors(width, height)
        grid = AnchorGrid.find(anchors, getattr(self._generator, "num_cell_anchors", None))
        if grid is None:
            every = Boxes.cat(anchors)
            return lambda boxes: torch.cat([pairwise_iou(Boxes(b), every).amax(dim=1) for b in boxes.tensor.split(64)])

        def search(boxes: Boxes) -> torch.Tensor:
            iou = grid.nearest_iou(boxes)
            below = (iou < self.threshold).nonzero().squeeze(1)
            best = torch.zeros(len(below))
            for pair_iou, box, _ in grid.overlapping_pairs(boxes[below], self.threshold, with_best=True):
                best.scatter_reduce_(0, box, pair_iou, "amax")
            iou[below] = best
            return iou

        return search


@check
def check_anchors(context: Context) -> None:
    """Find boxes without a positive anchor at the smallest and at the largest training size."""
    cfg, table = context.cfg, context.table.select(~context.table.crowd)
    if len(table) == 0:
        return
    coverage, edges = AnchorCoverage(cfg), training_edges(cfg) or [0]
    best = [coverage.best_iou(table.boxes, table.sizes, edge) for edge in edges]
    ious = np.stack([iou for iou, _ in best])
    corners = best[-1][1].astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    # Images that vanish at training size are reported as such.
    missed = (ious < coverage.threshold).all(axis=0) & (sides > 0).all(axis=1)
    if not missed.any():
        return
    sides, ious, rows = sides[missed], ious[:, missed], table.select(missed)
    kinds = np.array([kind.name for kind in _classify(sides, coverage.anchor_sides(), coverage.threshold)])
    for kind in (SMALL, LARGE, ELONGATED, SPARSE):
        which = kinds == kind.name
        if which.any():
            rows.report(context.found, kind, which, lambda i: _describe(edges, ious[:, i], sides[i]))
            context.found.advise(kind, _advice(kind, table, cfg, edges, sides[which]))


def _describe(edges: Sequence[int], ious: np.ndarray, sides: np.ndarray) -> str:
    best = " and ".join(f"{iou:.3f}" for iou in ious)
    at = " and ".join(f"{edge} px" for edge in edges) if edges != [0] else "its size"
    return f"best IoU {best} at {at}; {sides[0]:.4g} x {sides[1]:.4g} there"


def _classify(sides: np.ndarray, anchor_sides: np.ndarray, threshold: float) -> Iterator[Kind]:
    """The kind of each box without a positive anchor; both arrays are width and height (number, 2)."""
    area, anchor_area = sides.prod(axis=1), anchor_sides.prod(axis=1)
    ratios = np.unique((anchor_sides[:, 1] / anchor_sides[:, 0]).round(3))
    for box_sides, box_area in zip(sides, area):
        # If anchors of the box's own area, in all configured ratios, do not overlap it enough, no size does.
        own = np.sqrt(box_area) * np.stack([ratios**-0.5, ratios**0.5], axis=1)
        intersection = np.minimum(own, box_sides).prod(axis=1)
        if (intersection / (2 * box_area - intersection)).max() < threshold:
            yield ELONGATED
        elif box_area < anchor_area.min():
            yield SMALL
        elif box_area > anchor_area.max():
            yield LARGE
        else:
            yield SPARSE


def _advice(kind: Kind, table: Table, cfg: CfgNode, edges: Sequence[int], sides: np.ndarray) -> str:
    """A sentence with the best of a few changes and its effect; empty if none helps."""
    some = table.select(np.arange(len(table)) % -(-len(table) // _TRIAL_BOXES) == 0)
    now, trials = _share_missed(some, cfg, edges), []
    for key, value, words in _trials(kind, cfg.MODEL.ANCHOR_GENERATOR, sides):
        trial = cfg.clone()
        trial.defrost()
        trial.MODEL.ANCHOR_GENERATOR[key] = value
        trials.append((_share_missed(some, trial, edges), f"MODEL.ANCHOR_GENERATOR.{key} {words}"))
    share, change = min(trials, default=(now, ""))
    if share >= now:
        return ""
    return f"Here, {change} leaves {share:.2%} of all boxes without a positive anchor, in place of {now:.2%}."


def _share_missed(table: Table, cfg: CfgNode, edges: Sequence[int]) -> float:
    coverage = AnchorCoverage(cfg)
    ious = [coverage.best_iou(table.boxes, table.sizes, edge)[0] for edge in edges]
    return float((np.stack(ious) < coverage.threshold).all(axis=0).mean())


def _trials(kind: Kind, generator: CfgNode, sides: np.ndarray) -> Iterator[tuple[str, list[list[float]], str]]:
    """Keys of an anchor generator, new values, and what to call the values."""
    for factor in _FACTORS.get(kind, ()):
        yield "SIZES", [[size * factor for size in level] for level in generator.SIZES], f"times {factor:g}"
    if kind is ELONGATED:
        long = np.maximum(sides[:, 0] / sides[:, 1], sides[:, 1] / sides[:, 0])
        for ratio in dict.fromkeys(np.quantile(long, (0.25, 0.5, 0.75)).round(1).tolist()):
            more = [sorted({*level, round(1 / ratio, 3), ratio}) for level in generator.ASPECT_RATIOS]
            yield "ASPECT_RATIOS", more, str(more)
