"""Whether the other fields of an annotation let it be loaded, trained on and evaluated."""

import math
import textwrap

from .findings import ERROR, WARNING, declare
from .structure import is_number

NO_CROWD = declare(
    "iscrowd-missing",
    ERROR,
    "COCO's evaluation on this set stops with a KeyError, after the training. Training alone does not read it.",
    "Add iscrowd: 0. --fix does.",
)
BAD_CROWD = declare(
    "iscrowd-invalid",
    ERROR,
    "Whatever is not 0 is a group for Detectron2: training drops the box.",
    'Write 0, or 1 for a group of objects. --fix does for true, false, "0" and "1".',
)
IGNORE = declare(
    "annotation-ignore",
    ERROR,
    "Loading stops with an AssertionError: Detectron2 does not support ignore.",
    "Use iscrowd: 1, which is not trained on either, or remove the annotation. --fix turns ignore into iscrowd.",
)
NO_AREA = declare(
    "area-missing",
    ERROR,
    "COCO's evaluation on this set stops with a KeyError, after the training. Training alone does not read it.",
    "Add the area of the object, or width times height. --fix writes the latter.",
)
BAD_AREA = declare(
    "area-invalid",
    ERROR,
    "COCO's evaluation tells small, medium and large objects by it: it stops, or counts the object nowhere.",
    "Write a positive number of pixels. --fix writes width times height.",
)
OTHER_AREA = declare(
    "area-inconsistent",
    WARNING,
    "An area that the box cannot have: AP of small, medium and large objects is of others than it says.",
    "Write the area of the object in pixels. --fix writes width times height.",
)
BAD_MASK = declare(
    "segmentation-malformed",
    ERROR,
    "Loading stops, although RetinaNet reads no masks.",
    "A segmentation is a list of polygons [[x0, y0, x1, y1, ...]], or RLE with counts and size. --fix wraps a single "
    "polygon into a list and removes any other.",
)
NO_MASK = declare(
    "segmentation-degenerate",
    WARNING,
    "No polygon has three points: Detectron2 drops the annotation when it loads the set, with its box.",
    "Remove the segmentation. --fix does, and keeps the box.",
)

_MAX_AREA = 1.05  # of a box that is a pixel larger on each side
_MIN_AREA = 0.01  # of the box, where no segmentation tells why it would be so small


def check_fields(annotations, image_of, found):
    """Check iscrowd, ignore and segmentation of every annotation.

    Args:
        annotations (list): entries with an image and a category.
        image_of: dict of ids to images.
        found (Findings): gets what is wrong.
    """
    for annotation in annotations:
        image, crowd = image_of[annotation["image_id"]], annotation.get("iscrowd", 0)
        if "iscrowd" not in annotation:
            found.add(NO_CROWD, "no iscrowd", image, annotation)
        elif type(crowd) not in (int, float) or crowd not in (0, 1):
            found.add(BAD_CROWD, f"iscrowd is {crowd!r}", image, annotation)
        if annotation.get("ignore", 0) != 0:
            found.add(IGNORE, f"ignore is {annotation['ignore']!r}", image, annotation)
        if annotation.get("segmentation"):
            problem = _mask_problem(annotation["segmentation"])
            if problem:
                found.add(*problem, image, annotation)


def check_areas(table, found):
    """Check the areas of annotations with boxes that can be used.

    Args:
        table (Table): of :func:`check_boxes`.
        found (Findings): gets what is wrong.
    """
    for annotation, image in zip(table.annotations, table.images):
        _, _, width, height = annotation["bbox"]
        area = annotation.get("area")
        if "area" not in annotation:
            found.add(NO_AREA, "no area", image, annotation)
        elif not is_number(area) or not math.isfinite(area) or area <= 0:
            found.add(BAD_AREA, f"area is {area!r}", image, annotation)
        elif area > _MAX_AREA * (width + 1) * (height + 1) or (
            area < _MIN_AREA * width * height and not annotation.get("segmentation")
        ):
            found.add(OTHER_AREA, f"area {area!r} of a box of {width:g} x {height:g}", image, annotation)


def _mask_problem(mask):
    if isinstance(mask, dict):
        good = isinstance(mask.get("size"), list) and isinstance(mask.get("counts"), (str, list))
        return None if good else (BAD_MASK, "RLE without size or counts")
    if not isinstance(mask, list):
        return BAD_MASK, f"segmentation is {textwrap.shorten(repr(mask), 60)}"
    if not all(isinstance(polygon, list) for polygon in mask):
        return BAD_MASK, f"segmentation is {textwrap.shorten(repr(mask), 60)}, not a list of polygons"
    if not any(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in mask):
        return NO_MASK, f"segmentation is {textwrap.shorten(repr(mask), 60)}"
    return None
