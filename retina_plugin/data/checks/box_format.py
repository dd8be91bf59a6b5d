"""Recognizes boxes of another format than COCO's [x, y, width, height] in pixels."""

import numpy as np

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.entries import Table, is_box
from retina_plugin.data.checks.findings import Finding, Kind, error_kind
from retina_plugin.data.checks.repair import Editor, repairs, set_box

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
    found. Multiply by width and height of the image, after finding out whether x and y are a corner or the center
    (YOLO).""")

# Half of random XYWH boxes have a width below x or a height below y: with ten boxes, no such box is not chance.
_MIN_BOXES = 10
_MIN_SHARE_OUTSIDE = 0.2
_MIN_SHARE_FITTING = 0.99
_TOLERANCE = 1.0  # pixel


@check
def check_box_format(context: Context) -> None:
    """Recognize XYXY in pixels and fractions of the image's sides; no later check can judge such boxes."""
    everything = Table.of(context.entries)
    table = everything.select(np.isfinite(everything.boxes).all(axis=1))
    problem = _other_format(table) if len(table) else None
    if problem is None:
        context.table = everything
        return
    kind, examples, detail = problem
    first = table.select(examples)
    context.found.add(kind, f"{detail}, such as {first.annotations[0]['bbox']}", first.images[0], first.annotations[0])


def _other_format(table: Table) -> tuple[Kind, np.ndarray, str] | None:
    """None for COCO's format, else the kind, a mask of boxes to show, and the evidence."""
    boxes, sizes, number = table.boxes, table.sizes, len(table)
    # Labels of whole pixels such as [0, 0, 1, 1] are tiny, but no fractions.
    fractions = (np.abs(boxes) <= 1 + 1e-6).all(axis=1)
    if fractions.mean() > 0.5 and (boxes[fractions] % 1 != 0).any():
        return AS_FRACTIONS, fractions, f"{fractions.sum()} of {number} boxes are within 0..1"
    outside = (boxes[:, :2] + boxes[:, 2:] > sizes + _TOLERANCE).any(axis=1)
    fits = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + _TOLERANCE)).all(axis=1)
    if number < _MIN_BOXES or outside.mean() < _MIN_SHARE_OUTSIDE or fits.mean() < _MIN_SHARE_FITTING:
        return None
    return (
        AS_XYXY,
        outside & fits if (outside & fits).any() else outside,
        f"{outside.sum()} of {number} boxes reach out of their image as [x, y, width, height], and {fits.sum()} fit as "
        "[x0, y0, x1, y1]",
    )
