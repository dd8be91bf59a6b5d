"""The entries of a COCO file that have all their fields, as lists and as columns, and the types of fields."""

import json
import math
import numbers
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from retina_plugin.data.checks.findings import Entry, Findings, Kind


class Entries(NamedTuple):
    """Entries that have all fields they need."""

    images: list[Entry] = []
    annotations: list[Entry] = []
    categories: list[Entry] = []

    @property
    def image_of(self) -> dict[Any, Entry]:
        """Images by id."""
        return {image["id"]: image for image in self.images}


@dataclass
class Table:
    """G annotations as columns, so that a check is one operation for all boxes."""

    annotations: list[Entry]
    images: list[Entry]  # the image of each annotation
    boxes: np.ndarray  # float64 (G, 4), XYWH in pixels, as in the file
    sizes: np.ndarray  # float64 (G, 2), width and height of the image
    crowd: np.ndarray  # bool (G,), groups of objects, which training leaves out

    @classmethod
    def of(cls, entries: Entries) -> "Table":
        """Columns of entries, all of whose annotations have an image."""
        image_of = entries.image_of
        images = [image_of[annotation["image_id"]] for annotation in entries.annotations]
        return cls(
            entries.annotations,
            images,
            np.array([annotation["bbox"] for annotation in entries.annotations], dtype=np.float64).reshape(-1, 4),
            np.array([(image["width"], image["height"]) for image in images], dtype=np.float64).reshape(-1, 2),
            # Detectron2 takes every value that does not equal 0 for a crowd.
            np.array([annotation.get("iscrowd", 0) != 0 for annotation in entries.annotations], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.annotations)

    def select(self, which: ArrayLike) -> "Table":
        """The rows of a mask (G,)."""
        rows = np.flatnonzero(which)
        annotations, images = ([column[i] for i in rows] for column in (self.annotations, self.images))
        return Table(annotations, images, self.boxes[rows], self.sizes[rows], self.crowd[rows])

    def report(self, found: Findings, kind: Kind, which: ArrayLike, describe: Callable[[int], str]) -> None:
        """Add a finding for each row of a mask (G,); ``describe(row)`` is its detail."""
        for i in np.flatnonzero(which).tolist():
            found.add(kind, describe(i), self.images[i], self.annotations[i])


def is_number(value: object) -> bool:
    """Whether a value is a number that a float can hold, infinity and NaN included; true and false are not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return is_number(value) and math.isfinite(value)


# Neither "nan" nor "inf", nor "1_000", which Python reads, nor "1,5", whose comma may stand for anything.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def as_numbers(value: Any) -> Any:
    """Convert strings of numbers and lists: "12", ["1e3"] and "[1, 2]" to 12, [1000.0] and [1, 2]; all else stays."""
    if isinstance(value, list):
        return [as_numbers(item) for item in value]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return as_numbers(json.loads(value))
        except (RecursionError, ValueError):
            return value
    if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip()):
        return value
    try:
        return int(value)
    except ValueError:
        return number if math.isfinite(number := float(value)) else value


def as_id(value: Any) -> Any:
    """Convert a string of a whole number, such as "12", " 12 " or "12.0", to the number; all else stays."""
    number = as_numbers(value) if isinstance(value, str) else value
    return int(number) if is_finite(number) and number == int(number) else value


def is_id(value: object) -> bool:
    return isinstance(value, str) or is_finite(value)


def is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_side(value: Any) -> bool:
    """Whether a value can be the width or height of an image in pixels."""
    return is_finite(value) and value > 0 and value == int(value)


def is_box(value: object, is_coordinate: Callable[[Any], bool] = is_finite) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_coordinate, value))


def shorten(value: object) -> str:
    """A value in a message."""
    return textwrap.shorten(repr(value), 60)
