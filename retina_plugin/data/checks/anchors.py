"""Checks that the configured anchors give every box a positive one (Lin et al. 2017, section 4, "Anchors").

A box without a positive anchor is learned only from the anchors that overlap it most
(``MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES``), whatever their IoU, or never.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from retina_plugin.core.rng import preserve_random_state
from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.entries import Table
from retina_plugin.data.checks.findings import Kind, warning_kind
from retina_plugin.data.checks.images import training_edges
from retina_plugin.data.training_boxes import transform_size
from retina_plugin.modeling.anchor_coverage import AnchorCoverage

_HARM = "No anchor overlaps the box enough to be positive: it is learned badly or, without low-quality matches, never."
SMALL = warning_kind(f"""anchors-too-large: {_HARM} It is smaller than the smallest anchor. Multiply
    MODEL.ANCHOR_GENERATOR.SIZES by a factor below 1, or train on larger images (INPUT.MIN_SIZE_TRAIN).""")
LARGE = warning_kind(f"""anchors-too-small: {_HARM} It is larger than the largest anchor. Multiply
    MODEL.ANCHOR_GENERATOR.SIZES by a factor above 1, or train on smaller images (INPUT.MIN_SIZE_TRAIN).""")
ELONGATED = warning_kind(f"""anchors-too-square: {_HARM} It is more elongated than all anchors of its size. Add its
    ratio, height / width, to MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS.""")
SPARSE = warning_kind(f"""anchors-too-sparse: {_HARM} It lies between the anchors, in size or in place. Add sizes or
    ratios to MODEL.ANCHOR_GENERATOR (see `anchors fit`), or train on larger images (INPUT.MIN_SIZE_TRAIN).""")

Resized = tuple[np.ndarray, np.ndarray]  # boxes and sizes of resize_boxes

_TRIAL_BOXES = 20000
_FACTORS = {SMALL: (0.75, 0.5, 0.35, 0.25), LARGE: (1.5, 2.0, 3.0, 4.0)}


@check
def check_anchors(context: Context) -> None:
    """Find boxes without a positive anchor at the smallest and at the largest training size."""
    cfg, table = context.cfg, context.table.select(~context.table.crowd)
    if len(table) == 0:
        return
    coverage, edges = AnchorCoverage(cfg), training_edges(cfg) or [0]
    resized = [resize_boxes(cfg, table, edge) for edge in edges]
    ious = np.stack([coverage.best(*boxes_and_sizes)[0] for boxes_and_sizes in resized])
    corners = resized[-1][0].astype(np.float64)
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


def resize_boxes(cfg: CfgNode, table: Table, short_edge: int) -> Resized:
    """Resize boxes as Detectron2's mapper does with images whose short side it resizes to ``short_edge``; 0 for none.

    Returns:
        The boxes, float32 (G, 4), XYXY in pixels, cut at the border; height and width of their images, int64 (G, 2).
    """
    augmentations = T.AugmentationList([T.ResizeShortestEdge(short_edge, cfg.INPUT.MAX_SIZE_TRAIN)])
    # As the mapper: a float32 box is converted to corners, which are resized in float64.
    corners = table.boxes.astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    resized, sizes = corners.astype(np.float64), np.zeros((len(table), 2), dtype=np.int64)
    originals, which = np.unique(table.sizes.astype(int), axis=0, return_inverse=True)
    for number, (width, height) in enumerate(originals.tolist()):
        rows = np.flatnonzero(which.ravel() == number)
        with preserve_random_state():  # a choice of one
            transforms, sizes[rows] = transform_size(augmentations, (height, width))
        resized[rows] = transforms.apply_box(resized[rows])
    return np.minimum(resized.clip(min=0), np.tile(sizes[:, ::-1], 2)).astype(np.float32), sizes


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
    resized = [resize_boxes(cfg, some, edge) for edge in edges]
    now, trials = _share_missed(cfg, resized), []
    for key, value, words in _trials(kind, cfg.MODEL.ANCHOR_GENERATOR, sides):
        trial = cfg.clone()
        trial.defrost()
        trial.MODEL.ANCHOR_GENERATOR[key] = value
        trials.append((_share_missed(trial, resized), f"MODEL.ANCHOR_GENERATOR.{key} {words}"))
    share, change = min(trials, default=(now, ""))
    if share >= now:
        return ""
    return f"Here, {change} leaves {share:.2%} of all boxes without a positive anchor, in place of {now:.2%}."


def _share_missed(cfg: CfgNode, resized: Sequence[Resized]) -> float:
    coverage = AnchorCoverage(cfg)
    ious = [coverage.best(boxes, sizes)[0] for boxes, sizes in resized]
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
