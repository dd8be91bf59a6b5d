"""Whether each box has a size and lies in its image, and is there once."""

import numpy as np
from detectron2.data.transforms import ResizeShortestEdge

from .findings import ERROR, WARNING, declare
from .images import training_edges

NOT_FINITE = declare(
    "box-not-finite",
    ERROR,
    "Training drops a box with NaN and stretches one with Infinity to the border; the evaluation's IoUs are wrong.",
    "Correct it. --fix drops the annotation.",
)
ZERO = declare(
    "box-zero",
    ERROR,
    "Training drops the box without a word, and evaluation counts an object that nobody can find.",
    "Remove it. --fix does.",
)
NEGATIVE = declare(
    "box-negative",
    ERROR,
    "Training takes the box that ends where this one starts; evaluation takes none.",
    "Correct or remove it. --fix drops the annotation.",
)
OUTSIDE = declare(
    "box-outside",
    ERROR,
    "Nothing of the box is in the image: training drops it, and evaluation counts an object that nobody can find.",
    "Compare the image's width and height with what the box was drawn on. --fix drops the annotation.",
)
PARTLY_OUTSIDE = declare(
    "box-partly-outside",
    WARNING,
    "Training cuts the box at the border, evaluation does not: the best detection has a lower IoU.",
    "Cut the boxes at the border. --fix does.",
)
SLIVER = declare(
    "box-sliver",
    WARNING,
    "A box of a single row or column of pixels, which hardly overlaps any anchor.",
    "Mostly a slip of the mouse: remove it.",
)
DUPLICATE = declare(
    "box-duplicate",
    WARNING,
    "The same box of the same class again: no anchor is left for it, and evaluation counts an object that is missed.",
    "Remove all but one. --fix does.",
)
TWO_CLASSES = declare(
    "box-two-classes",
    WARNING,
    "An anchor learns one box: of equal ones the first, so that the other's class is never learnt here.",
    "Decide for one class.",
)
INTEGER = declare(
    "box-integer",
    WARNING,
    "Detectron2 resizes a box of four integers in integers: each edge loses up to a pixel at training size, half of "
    "one on average, towards the upper left, or to the right in mirrored images.",
    "Write one number with a point: [10.0, 20, 30, 40]. --fix does.",
)

_TOLERANCE = 1.0  # pixel


def check_boxes(table, cfg, found):
    """Check the boxes.

    Args:
        table (Table): annotations whose boxes are COCO's.
        cfg: the configuration.
        found (Findings): gets what is wrong.

    Returns:
        Table: of the boxes that training can use.
    """
    x, y, width, height = table.boxes.T
    right, bottom = x + width - table.sizes[:, 0], y + height - table.sizes[:, 1]
    finite = np.isfinite(table.boxes).all(axis=1)
    negative = finite & ((width < 0) | (height < 0))
    zero = finite & ~negative & ((width == 0) | (height == 0))
    usable = finite & ~negative & ~zero
    beyond = (x >= table.sizes[:, 0]) | (y >= table.sizes[:, 1]) | (x + width <= 0) | (y + height <= 0)
    outside = usable & beyond
    usable &= ~outside
    most = np.maximum.reduce([-x, -y, right, bottom])

    def box(i):
        return f"bbox {table.annotations[i]['bbox']}"

    def in_image(i):
        return f"{box(i)} in {table.sizes[i, 0]:.0f} x {table.sizes[i, 1]:.0f}"

    table.report(found, NOT_FINITE, ~finite, box)
    table.report(found, NEGATIVE, negative, box)
    table.report(found, ZERO, zero, box)
    table.report(found, OUTSIDE, outside, in_image)
    partly = usable & (most > _TOLERANCE)
    table.report(found, PARTLY_OUTSIDE, partly, lambda i: f"{in_image(i)}: by {most[i]:.4g} pixels")
    sliver = usable & ((width <= 1) | (height <= 1))
    table.report(found, SLIVER, sliver, box)
    _check_copies(table, usable, found)
    _check_integers(table, usable & ~table.crowd, cfg, found)
    return table.select(usable & ~sliver)


def _check_copies(table, usable, found):
    first = {}
    for i in np.flatnonzero(usable & ~table.crowd):
        annotation = table.annotations[i]
        before = first.setdefault((annotation["image_id"], *annotation["bbox"]), annotation)
        if before is annotation:
            continue
        kind = DUPLICATE if before["category_id"] == annotation["category_id"] else TWO_CLASSES
        classes = "" if kind is DUPLICATE else f": {before['category_id']!r} and {annotation['category_id']!r}"
        found.add(kind, f"as annotation {before['id']!r}{classes}", table.images[i], annotation)


def _check_integers(table, rows, cfg, found):
    scaled = {}
    for i in np.flatnonzero(rows):
        if not all(type(value) is int for value in table.annotations[i]["bbox"]):
            continue
        size = tuple(table.sizes[i])
        if size not in scaled:
            scaled[size] = _loses_fractions(*map(int, size), cfg)
        if scaled[size]:
            found.add(INTEGER, f"bbox {table.annotations[i]['bbox']}", table.images[i], table.annotations[i])


def _loses_fractions(width, height, cfg):
    """Whether training resizes such images by a factor that is no whole number."""
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "choice":
        edges = [edge for edge in np.atleast_1d(cfg.INPUT.MIN_SIZE_TRAIN).tolist() if edge > 0]
    else:
        edges = range(training_edges(cfg)[0], training_edges(cfg)[-1] + 1) if training_edges(cfg) else ()
    for edge in edges:
        new_height, new_width = ResizeShortestEdge.get_output_shape(height, width, edge, cfg.INPUT.MAX_SIZE_TRAIN)
        if new_width % width or new_height % height:
            return True
    return False
