"""Counts the boxes that Detectron2's loader and mapper leave out of training, by class and reason."""

import math
from collections import Counter
from typing import Any

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.findings import Entry, warning_kind

# Why a box is dropped, in the words of its fields.
CROWD = "iscrowd is not 0"
NO_POLYGON = "no polygon of three points"
NO_AREA = "no area in the image"
NOT_LOADED = (CROWD, NO_POLYGON)  # an image with these alone is dropped as well; the mapper drops the others later

MIN_SIDE = 1e-5  # pixels, as in Detectron2's filter_empty_instances

DROPPED = warning_kind("""boxes-dropped: Detectron2 leaves these boxes out of training, silently: groups (iscrowd 1),
    boxes whose segmentation is no polygon, boxes without area in the image. What is meant as one object needs iscrowd 0
    (some tools write 1 with every mask), a valid segmentation or none, and a box with an area.""")


def drop_reason(annotation: Entry, width_of_image: float, height_of_image: float) -> str | None:
    """Say why Detectron2 does not train on an annotation; None if it does."""
    if annotation.get("iscrowd", 0) != 0:
        return CROWD
    if has_no_polygon(annotation.get("segmentation")):
        return NO_POLYGON
    x, y, width, height = annotation["bbox"]
    has_area = _overlap(x, width, width_of_image) > MIN_SIDE and _overlap(y, height, height_of_image) > MIN_SIDE
    return None if has_area else NO_AREA  # NaN has none


def has_no_polygon(mask: Any) -> bool:
    """Whether Detectron2's loader finds a segmentation with polygons none of which has three points."""
    if not mask or not isinstance(mask, (list, str)) or not all(hasattr(polygon, "__len__") for polygon in mask):
        return False
    return not any(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in mask)


@check
def check_dropped(context: Context) -> None:
    """Find out which annotations training leaves out, and how many of each class."""
    image_of, annotations, found = context.entries.image_of, context.entries.annotations, context.found
    reasons: dict[Any, Counter[str]] = {}
    for annotation in annotations:
        image = image_of[annotation["image_id"]]
        # With a wrong size, which the file's will replace, it is not known where the image ends.
        sides = (math.inf, math.inf) if id(image) in context.wrong_sizes else (image["width"], image["height"])
        reason = drop_reason(annotation, *sides)
        if reason:
            context.dropped[id(annotation)] = reason
            reasons.setdefault(annotation["category_id"], Counter())[reason] += 1
    if not reasons:
        return
    totals = Counter(annotation["category_id"] for annotation in annotations)
    for category in context.entries.categories:
        if category["id"] in reasons:
            number, of_class = totals[category["id"]], reasons[category["id"]]
            detail = f"{category['name']!r}: {of_class.total()} of {number} boxes: {count_reasons(of_class)}"
            found.add(DROPPED, detail, None, None, category)


def count_reasons(reasons: Counter[str]) -> str:
    """Each reason with its number."""
    return ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common())


def _overlap(start: float, length: float, side: float) -> float:
    """Length of the part of an edge, which may run backwards, in an image's side."""
    return min(max(start, start + length), side) - max(min(start, start + length), 0)
