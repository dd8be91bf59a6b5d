"""Whether the entries of a COCO file have the fields that Detectron2 and COCO's evaluation read, in their types."""

import math
import numbers
import textwrap
from typing import NamedTuple

from .findings import ERROR, declare

EMPTY_SECTION = declare(
    "section-empty", ERROR, "Detectron2 stops when it loads the set.", "Export the file again: a list in it is empty."
)
NOT_AN_ENTRY = declare(
    "entry-invalid", ERROR, "Loading stops with a TypeError.", "Remove what is not an object. --fix does."
)
NO_FIELD = declare(
    "field-missing",
    ERROR,
    "Loading, the first batch or the evaluation stops with a KeyError.",
    "Add the field. --fix numbers annotations, takes sizes from the files, and drops what has no other remedy.",
)
BAD_FIELD = declare(
    "field-invalid",
    ERROR,
    "Training or evaluation stops, or mistakes one entry for another.",
    "Ids are integers or strings, sides positive integers, names strings. --fix as for field-missing.",
)
BAD_BOX = declare(
    "box-malformed",
    ERROR,
    "Loading or the first batch with it stops.",
    "A box is a list of four numbers [x, y, width, height]. --fix drops the annotation.",
)


class Entries(NamedTuple):
    """The entries that have all fields they need."""

    images: list
    annotations: list
    categories: list


def check_structure(coco, found):
    """Check every entry.

    Args:
        coco: of :func:`read_coco`.
        found (Findings): gets what is wrong.

    Returns:
        Entries: those that can be checked further.
    """
    empty = [section for section in ("images", "categories") if not coco[section]]
    for section in empty:
        found.add(EMPTY_SECTION, f"{section} is empty")
    if empty:
        return Entries([], [], [])
    images = [x for x in coco["images"] if _check(x, "image", _IMAGE, found)]
    categories = [x for x in coco["categories"] if _check(x, "category", _CATEGORY, found)]
    image_of = {image["id"]: image for image in images}
    annotations = [x for x in coco["annotations"] if _check(x, "annotation", _ANNOTATION, found, image_of)]
    return Entries(images, [x for x in annotations if _check_box(x, image_of, found)], categories)


def _check(entry, section, fields, found, image_of=None):
    if not isinstance(entry, dict):
        found.add(NOT_AN_ENTRY, f"{section} is {_short(entry)}")
        return False
    good = True
    for name, is_good in fields.items():
        if name in entry and is_good(entry[name]):
            continue
        good = False
        place = {section: entry}
        if section == "annotation" and is_id(entry.get("image_id")):
            place["image"] = image_of.get(entry["image_id"])
        if name not in entry:
            found.add(NO_FIELD, f"{section} without {name}", **place)
        else:
            found.add(BAD_FIELD, f"{name} of {section} is {_short(entry[name])}", **place)
    return good


def _check_box(annotation, image_of, found):
    box = annotation["bbox"]
    if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
        return True
    found.add(BAD_BOX, f"bbox is {_short(box)}", image_of.get(annotation["image_id"]), annotation)
    return False


def _short(value):
    return textwrap.shorten(repr(value), 60)


def is_number(value):
    """Whether a value is a number, finite or not; true and false are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_id(value):
    return isinstance(value, str) or (is_number(value) and math.isfinite(value))


def is_side(value):
    return is_number(value) and value > 0 and math.isfinite(value) and value == int(value)


def _is_name(value):
    return isinstance(value, str) and bool(value.strip())


_IMAGE = {"id": is_id, "file_name": _is_name, "width": is_side, "height": is_side}
_ANNOTATION = {"id": is_id, "image_id": is_id, "category_id": is_id, "bbox": lambda value: True}
_CATEGORY = {"id": is_id, "name": lambda value: isinstance(value, str)}
