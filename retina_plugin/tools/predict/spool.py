"""Results of single images on their way into the result files: a line of JSON each, in one file a process."""

import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retina_plugin.core.errors import ImageError
from retina_plugin.core.files import UNFINISHED_SUFFIX
from retina_plugin.runtime.detections import Detections

Record = dict[str, Any]  # see as_record
SUFFIX = ".jsonl"


def spool_path(folder: Path, rank: int) -> Path:
    """Return the file of a process. A process that is killed leaves it, and nothing reads it."""
    return folder / f"predictions.rank{rank}{SUFFIX}{UNFINISHED_SUFFIX}"


def as_record(number: int, result: Detections | ImageError) -> Record:
    """Return what is kept of an image, as JSON: every float32 number exactly.

    Args:
        number: of the source.
        result: of the image.
    """
    if isinstance(result, ImageError):
        return {"source": number, "frame": -1, "name": result.path, "problem": result.reason}
    return {
        "source": number,
        "frame": -1 if result.frame is None else result.frame,
        "name": result.name,
        "image_id": result.image_id,
        "height": result.height,
        "width": result.width,
        "boxes": result.boxes.tolist(),
        "scores": result.scores.tolist(),
        "class_ids": result.class_ids.tolist(),
    }


def read_records(paths: Sequence[Path]) -> Iterator[Record]:
    """Yield the records of all processes in the order of sources and frames; images without an id get 1, 2, 3, ...

    The records of a video that breaks off end with its problem.
    """
    number = 0
    for record in heapq.merge(*map(_read, paths), key=_place):
        if "problem" not in record:
            number += 1
            record["image_id"] = number if record["image_id"] is None else record["image_id"]
        yield record


def _read(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _place(record: Record) -> tuple[int, int]:
    return record["source"], record["frame"]
