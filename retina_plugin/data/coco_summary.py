"""Reads what the checks before a job need of a COCO file: its classes, and whether it has annotations."""

import functools
import json
import os
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager


class CocoSummary(NamedTuple):
    """What is kept of a COCO file.

    Attributes:
        class_names: in the order of labels, which is that of category ids, as Detectron2 counts them.
        has_annotations: whether its list of annotations is there and not empty.
    """

    class_names: list[str]
    has_annotations: bool


def read_coco_summary(json_file: str) -> CocoSummary:
    """Read a COCO file, once as long as the file stays as it is.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a COCO file; the message says what it lacks.
    """
    stamp = None
    if os.path.isfile(json_file):  # not a remote one
        status = os.stat(json_file)
        stamp = status.st_mtime_ns, status.st_size
    return _read(json_file, stamp)


@functools.lru_cache(maxsize=32)
def _read(json_file: str, stamp: object) -> CocoSummary:
    with PathManager.open(json_file) as file:
        try:
            coco = json.load(file)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
            raise ValueError(f"it is not JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(coco, dict):
        raise ValueError(f"it holds a {type(coco).__name__}, not an object with images, annotations and categories")
    for section in ("images", "categories"):
        if not isinstance(coco.get(section), list) or not all(isinstance(entry, dict) for entry in coco[section]):
            raise ValueError(f"it has no list '{section}' of objects")
    try:
        categories: list[dict[str, Any]] = sorted(coco["categories"], key=lambda category: category["id"])
        names = [category["name"] for category in categories]
    except KeyError as error:
        raise ValueError(f"a category has no {error}") from None
    except TypeError:
        raise ValueError("the ids of its categories are of different types") from None
    return CocoSummary(names, bool(coco.get("annotations")))
