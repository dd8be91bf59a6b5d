"""Writes the result files: COCO results, CSV, the table of images, COCO pseudo-labels."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from retina_plugin.core.files import atomic_write
from retina_plugin.runtime.detections import to_xywh
from retina_plugin.tools.predict.spool import Record

RESULTS, TABLE, IMAGES, COCO_LABELS = "predictions.json", "predictions.csv", "images.json", "labels.json"
_COLUMNS = ("image_id", "file_name", "frame", "class_name", "category_id", "score", "x1", "y1", "x2", "y2")


class Category(NamedTuple):
    """A class: its id in COCO files, and its name."""

    id: int
    name: str


def write_results(
    folder: Path, records: Callable[[], Iterable[Record]], categories: Sequence[Category], coco_labels: bool
) -> None:
    """Write the files of a run, each whole or not at all; no more than one record is in memory.

    Args:
        folder: of the files.
        records: called for every file; yields the images that were read, and those that were not.
        categories: by label.
        coco_labels: write a COCO data set with the detections as its annotations as well.
    """

    def read() -> Iterator[Record]:
        return (record for record in records() if "problem" not in record)

    atomic_write(folder / RESULTS, lambda file: _write_list(file, _coco_results(read(), categories)))
    atomic_write(folder / TABLE, lambda file: _write_table(file, read(), categories))
    atomic_write(folder / IMAGES, lambda file: _write_coco(file, read(), (), categories))
    if coco_labels:
        annotations = _annotations(read(), categories)
        atomic_write(folder / COCO_LABELS, lambda file: _write_coco(file, read(), annotations, categories))


def _coco_results(records: Iterable[Record], categories: Sequence[Category]) -> Iterator[dict[str, Any]]:
    for record in records:
        for box, score, label in zip(to_xywh(record["boxes"]), record["scores"], record["class_ids"]):
            category = categories[label].id
            yield {"image_id": record["image_id"], "category_id": category, "bbox": box, "score": score}


def _annotations(records: Iterable[Record], categories: Sequence[Category]) -> Iterator[dict[str, Any]]:
    for number, result in enumerate(_coco_results(records, categories), 1):
        area = result["bbox"][2] * result["bbox"][3]
        yield {"id": number, **result, "area": area, "iscrowd": 0}


def _images(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    for record in records:
        image = {"id": record["image_id"], "file_name": record["name"]}
        frame = {"frame": record["frame"]} if record["frame"] >= 0 else {}
        yield {**image, **frame, "width": record["width"], "height": record["height"]}


def _write_coco(
    file: IO[bytes],
    records: Iterable[Record],
    annotations: Iterable[dict[str, Any]],
    categories: Sequence[Category],
) -> None:
    file.write(b'{"info": {}, "images": ')
    _write_list(file, _images(records))
    file.write(b', "annotations": ')
    _write_list(file, annotations)
    file.write(b', "categories": ')
    _write_list(file, (category._asdict() for category in categories))
    file.write(b"}\n")


def _write_list(file: IO[bytes], items: Iterable[dict[str, Any]]) -> None:
    separator = b"[\n"
    for item in items:
        file.write(separator + json.dumps(item).encode())
        separator = b",\n"
    file.write(b"[]" if separator == b"[\n" else b"\n]")


def _write_table(file: IO[bytes], records: Iterable[Record], categories: Sequence[Category]) -> None:
    text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
    rows = csv.writer(text)
    rows.writerow(_COLUMNS)
    for record in records:
        image = (record["image_id"], record["name"], record["frame"] if record["frame"] >= 0 else "")
        for box, score, label in zip(record["boxes"], record["scores"], record["class_ids"]):
            rows.writerow([*image, categories[label].name, categories[label].id, score, *box])
    text.detach()  # the file is closed by whoever opened it
