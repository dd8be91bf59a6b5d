"""Checks that boxes have COCO's format, [x, y, width, height] in pixels, an area within the image, and no copy."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.dropped import MIN_SIDE
from retina_plugin.data.checks.entries import Table, is_box
from retina_plugin.data.checks.findings import Entry, Finding, Findings, error_kind, warning_kind
from retina_plugin.data.checks.images import training_edges
from retina_plugin.data.checks.repair import Editor, drop_annotation, repairs, set_box

_TOLERANCE = 1.0  # pixel

AS_XYXY = error_kind("""boxes-xyxy: The boxes are read as [x, y, width, height]: all are too large, and most reach out
    of the image. Write [x0, y0, x1 - x0, y1 - y0]. --fix does.""")


@repairs(AS_XYXY)
def _convert_boxes(editor: Editor, finding: Finding) -> str:
    boxes = [annotation for annotation in editor.entries("annotations") if is_box(annotation.get("bbox"))]
    for annotation in boxes:
        x0, y0, x1, y1 = annotation["bbox"]
        set_box(annotation, [x0, y0, x1 - x0, y1 - y0])
    return f"{len(boxes)} boxes converted"


AS_FRACTIONS = error_kind("""boxes-fractions: The boxes are read as pixels: all are smaller than one, and none is ever
    found. Multiply by the image's width and height, once you know whether x and y are a corner or the center
    (YOLO).""")

# Half of random XYWH boxes have a width below x or a height below y: with ten boxes, no such box is not chance.
_MIN_BOXES = 10
_MIN_SHARE_OUTSIDE = 0.2
_MIN_SHARE_FITTING = 0.99


@check
def check_box_format(context: Context) -> None:
    """Recognize XYXY in pixels and fractions of the image's sides; no later check can judge such boxes."""
    everything = Table.of(context.entries)
    table = everything.select(np.isfinite(everything.boxes).all(axis=1) & _has_right_size(everything, context))
    boxes, sizes, number = table.boxes, table.sizes, len(table)
    # Labels of whole pixels such as [0, 0, 1, 1] are tiny, but no fractions.
    fractions = (np.abs(boxes) <= 1 + 1e-6).all(axis=1)
    outside = (boxes[:, :2] + boxes[:, 2:] > sizes + _TOLERANCE).any(axis=1)
    fits = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + _TOLERANCE)).all(axis=1)
    if fractions.sum() > 0.5 * number and (boxes[fractions] % 1 != 0).any():
        kind, which, detail = AS_FRACTIONS, fractions, f"{fractions.sum()} of {number} boxes are within 0..1"
    elif number >= _MIN_BOXES and outside.mean() >= _MIN_SHARE_OUTSIDE and fits.mean() >= _MIN_SHARE_FITTING:
        kind, which = AS_XYXY, outside & fits if (outside & fits).any() else outside
        detail = f"{outside.sum()} of {number} boxes reach out of their image as [x, y, width, height], and "
        detail += f"{fits.sum()} fit as [x0, y0, x1, y1]"
    else:
        context.table = everything
        return
    first = table.select(which)
    context.found.add(kind, f"{detail}, such as {first.annotations[0]['bbox']}", first.images[0], first.annotations[0])


NOT_FINITE = error_kind("""box-not-finite: Training drops a box with NaN, and stretches one with Infinity or a number
    beyond any image to the border, or stops at it; the evaluation's IoUs are wrong. Correct it. --fix drops the
    annotation.""")
ZERO = error_kind("""box-zero: Training silently drops the box, and evaluation counts an object that cannot be found.
    Remove it. --fix does.""")
NEGATIVE = error_kind("""box-negative: Training takes the box that ends where this one starts; evaluation takes none.
    Correct or remove it. --fix drops the annotation.""")
OUTSIDE = error_kind("""box-outside: The box lies outside the image: training drops it, and evaluation counts an object
    that cannot be found. Compare the image's size with what the box was drawn on. --fix drops the annotation.""")
PARTLY_OUTSIDE = warning_kind("""box-partly-outside: Training cuts the box at the border, evaluation does not: the best
    detection has a lower IoU. Cut the boxes at the border. --fix does.""")


@repairs(PARTLY_OUTSIDE)
def _cut_at_border(editor: Editor, finding: Finding) -> str:
    assert finding.image is not None
    x, y, width, height = finding.entry["bbox"]
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, finding.image["width"]), min(y + height, finding.image["height"])
    set_box(finding.entry, [float(left), float(top), float(right - left), float(bottom - top)])
    return "box cut at the border"


SLIVER = warning_kind("""box-sliver: A box of one row or column of pixels hardly overlaps any anchor. Mostly a slip:
    remove it.""")
DUPLICATE = warning_kind("""box-duplicate: The same box of the same class again: no anchor is left for it, and
    evaluation counts an object that is missed. Remove all but one. --fix does.""")
repairs(NOT_FINITE, ZERO, NEGATIVE, OUTSIDE, DUPLICATE)(drop_annotation)

TWO_CLASSES = warning_kind("""box-two-classes: An anchor learns one box: of equal ones the first, so that the other's
    class is never learned here. Decide for one class.""")
INTEGER = warning_kind(
    """box-integer: Detectron2 resizes a box of four integers in integers: each edge loses up to a
    pixel at training size, half of one on average, towards the upper left, or to the right in mirrored images. Write
    one number with a point: [10.0, 20, 30, 40]. --fix does.""",
    is_advice=True,
)


@repairs(INTEGER)
def _write_floats(editor: Editor, finding: Finding) -> str:
    finding.entry["bbox"] = [float(value) for value in finding.entry["bbox"]]
    return "written as floats"


_LARGEST = 2.0**31  # coordinate in pixels


@check
def check_boxes(context: Context) -> None:
    """Find boxes that are not finite, empty, outside, repeated or rounded; keep those that training can use."""
    table, found = context.table, context.found
    x, y, width, height = table.boxes.T
    right, bottom = x + width - table.sizes[:, 0], y + height - table.sizes[:, 1]
    finite = (np.abs(table.boxes) < _LARGEST).all(axis=1)
    zero = finite & ((np.abs(width) <= MIN_SIDE) | (np.abs(height) <= MIN_SIDE))
    negative = finite & ~zero & ((width < 0) | (height < 0))
    usable = finite & ~negative & ~zero
    beyond = (x >= table.sizes[:, 0]) | (y >= table.sizes[:, 1]) | (x + width <= 0) | (y + height <= 0)
    has_size = _has_right_size(table, context)
    outside = usable & beyond & has_size
    usable &= ~outside
    most = np.maximum.reduce([-x, -y, right, bottom])

    def box(i: int) -> str:
        return f"bbox {table.annotations[i]['bbox']}"

    def in_image(i: int) -> str:
        return f"{box(i)} in {table.sizes[i, 0]:.0f} x {table.sizes[i, 1]:.0f}"

    table.report(found, NOT_FINITE, ~finite, box)
    table.report(found, NEGATIVE, negative, box)
    table.report(found, ZERO, zero, box)
    table.report(found, OUTSIDE, outside, in_image)
    partly = usable & (most > _TOLERANCE) & has_size
    table.report(found, PARTLY_OUTSIDE, partly, lambda i: f"{in_image(i)}: by {most[i]:.4g} pixels")
    sliver = usable & ((width <= 1) | (height <= 1))
    table.report(found, SLIVER, sliver, box)
    _check_copies(table, usable & ~table.crowd, found)
    table.report(found, INTEGER, usable & ~table.crowd & _loses_fractions(table, context.cfg), box)
    context.table = table.select(usable & ~sliver & has_size)


def _has_right_size(table: Table, context: Context) -> np.ndarray:
    """The boxes in images of the size in the JSON, bool (G,); the others cannot be judged by it."""
    return np.array([id(image) not in context.wrong_sizes for image in table.images], dtype=bool)


def _check_copies(table: Table, rows: np.ndarray, found: Findings) -> None:
    first: dict[tuple[Any, ...], Entry] = {}
    for i in np.flatnonzero(rows):
        annotation = table.annotations[i]
        before = first.setdefault((annotation["image_id"], *annotation["bbox"]), annotation)
        if before is annotation:
            continue
        kind = DUPLICATE if before["category_id"] == annotation["category_id"] else TWO_CLASSES
        classes = "" if kind is DUPLICATE else f": {before['category_id']!r} and {annotation['category_id']!r}"
        found.add(kind, f"as annotation {before['id']!r}{classes}", table.images[i], annotation)


def _loses_fractions(table: Table, cfg: CfgNode) -> np.ndarray:
    """The boxes of four integers, bool (G,), in images that training resizes by a factor that is no integer."""
    edges: Iterable[int] = training_edges(cfg)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "choice":
        edges = [edge for edge in np.atleast_1d(cfg.INPUT.MIN_SIZE_TRAIN).tolist() if edge > 0]
    elif edges:
        edges = range(min(edges), max(edges) + 1)
    by_fraction = {}
    for width, height in np.unique(table.sizes, axis=0).astype(int).tolist():
        resized = (ResizeShortestEdge.get_output_shape(height, width, e, cfg.INPUT.MAX_SIZE_TRAIN) for e in edges)
        by_fraction[width, height] = any(w % width or h % height for h, w in resized)
    integers = [all(type(value) is int for value in annotation["bbox"]) for annotation in table.annotations]
    return np.array([i and by_fraction[tuple(size)] for i, size in zip(integers, table.sizes)], dtype=bool)
