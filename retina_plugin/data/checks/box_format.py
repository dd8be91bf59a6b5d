"""Whether all boxes of a data set are of another format than COCO's [x, y, width, height] in pixels."""

import numpy as np

from .findings import ERROR, declare

AS_XYXY = declare(
    "boxes-xyxy",
    ERROR,
    "The boxes are read as [x, y, width, height]: all are too large, and most reach out of the image.",
    "Write [x0, y0, x1 - x0, y1 - y0]. --fix does.",
)
AS_FRACTIONS = declare(
    "boxes-fractions",
    ERROR,
    "The boxes are read as pixels: all are smaller than one, and none is ever found.",
    "Multiply by width and height of the image, after finding out whether x and y are a corner or the center (YOLO).",
)

# Of random XYWH boxes, half have a width below x, or a height below y: ten that have neither are no chance.
_MIN_BOXES = 10
_MIN_SHARE_OUTSIDE = 0.2
_MIN_SHARE_FITTING = 0.99
_TOLERANCE = 1.0  # pixel


def check_box_format(table, found):
    """Recognize XYXY in pixels and fractions of the image's sides.

    Args:
        table (Table): all annotations.
        found (Findings): gets what is wrong.

    Returns:
        bool: whether the boxes are COCO's, and can be judged as such.
    """
    rows = np.isfinite(table.boxes).all(axis=1)
    boxes, sizes = table.boxes[rows], table.sizes[rows]
    if len(boxes) == 0:
        return True
    # Labels of whole pixels such as [0, 0, 1, 1] are tiny, but no fractions.
    fractions = (np.abs(boxes) <= 1 + 1e-6).all(axis=1)
    if fractions.mean() > 0.5 and (boxes[fractions] % 1 != 0).any():
        first = table.select(rows).select(fractions)
        detail = f"{fractions.sum()} of {len(boxes)} boxes are within 0..1, such as {first.annotations[0]['bbox']}"
        found.add(AS_FRACTIONS, detail, first.images[0], first.annotations[0])
        return False
    outside = (boxes[:, :2] + boxes[:, 2:] > sizes + _TOLERANCE).any(axis=1)
    fits = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + _TOLERANCE)).all(axis=1)
    if len(boxes) >= _MIN_BOXES and outside.mean() >= _MIN_SHARE_OUTSIDE and fits.mean() >= _MIN_SHARE_FITTING:
        first = table.select(rows).select(outside & fits if (outside & fits).any() else outside)
        detail = (
            f"{outside.sum()} of {len(boxes)} boxes reach out of their image as [x, y, width, height], and "
            f"{fits.sum()} fit as [x0, y0, x1, y1], such as {first.annotations[0]['bbox']}"
        )
        found.add(AS_XYXY, detail, first.images[0], first.annotations[0])
        return False
    return True
