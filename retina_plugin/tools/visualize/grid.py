"""Draws a grid of images with ground truth and detections.

The detections are the ``coco_instances_results.json`` of Detectron2's ``COCOEvaluator``.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

from retina_plugin.core.drawing import (
    GAP,
    QUIET,
    TEXT,
    Color,
    arrange,
    draw_dashed,
    label_font,
    on_square,
    pixels_of,
    save_png,
)
from retina_plugin.core.files import refuse_special_file
from retina_plugin.core.plain import is_number
from retina_plugin.runtime.drawing import class_colors, draw_label

Record = dict[str, Any]  # of Detectron2's DatasetCatalog
Detection = tuple[float, int, tuple[float, float, float, float]]  # score, class, XYXY in pixels

_GROUND_TRUTH = (255, 255, 255)
_HEADER = 64


def draw_grid(
    dataset_name: str,
    predictions_json: str | Path,
    output_path: str | Path,
    *,
    num_images: int = 12,
    score_threshold: float = 0.5,
    columns: int = 4,
    tile_size: int = 288,
    class_names: Sequence[str] = (),
) -> Path:
    """Draw images of a data set with ground truth (dashed white) and detections (one color per class) into a PNG.

    Args:
        dataset_name: a registered data set in COCO format.
        predictions_json: COCO results with the category ids of the data set.
        output_path: the PNG, which is returned; its folder is made.
        num_images: images to show, spread evenly over the data set.
        score_threshold: lowest score of a detection to show.
        columns: images in a row.
        tile_size: length of an image's longer side in the grid, in pixels.
        class_names: those of the model, for a data set without names of its own.

    Raises:
        FileNotFoundError: there is no such predictions file.
        ValueError: the predictions are not COCO results, or not of this data set.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    classes = list(metadata.get("thing_classes") or class_names)
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or {label: label for label in range(len(classes))}
    detections = _read_detections(Path(predictions_json), dataset_name, records, ids, score_threshold)
    shown = [records[i] for i in np.linspace(0, len(records) - 1, min(num_images, len(records))).astype(int)]
    colors = class_colors(len(classes))

    found = [detections[record["image_id"]] for record in shown]
    sheet = arrange([_draw_tile(*pair, classes, colors, tile_size) for pair in zip(shown, found)], columns, _HEADER)
    num_objects, num_detections = sum(len(record["annotations"]) for record in shown), sum(map(len, found))
    _draw_header(
        sheet,
        f"{dataset_name}: {len(shown)} of {len(records)} images",
        f"{num_objects} objects, {num_detections} detections with a score of {score_threshold:g} or more",
        colors[0],
    )
    return save_png(sheet, Path(output_path))


def _read_detections(
    path: Path, dataset_name: str, records: list[Record], classes: Mapping[Any, int], score_threshold: float
) -> dict[Any, list[Detection]]:
    """Read the detections of each image, lowest score first. ``classes`` are labels by category id."""
    if not path.is_file():
        raise FileNotFoundError(
            f"No predictions file {path}. Detectron2's COCOEvaluator writes it as "
            "coco_instances_results.json when it is given an output_dir."
        )
    try:
        results = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(results, list):
        raise ValueError(f"{path} is not a COCO result list: a list of objects with {', '.join(_FIELDS)}.")
    for i, result in enumerate(results):
        if not isinstance(result, dict) or not all(is_valid(result.get(name)) for name, is_valid in _FIELDS.items()):
            raise ValueError(
                f"{path} is not a COCO result list: entry {i} is no object with {', '.join(_FIELDS)} (ids, four "
                "numbers, a number)."
            )

    image_ids = {record["image_id"] for record in records}
    _require_known("image", {r["image_id"] for r in results} - image_ids, path, dataset_name)
    _require_known("category", {r["category_id"] for r in results} - classes.keys(), path, dataset_name)

    detections: dict[Any, list[Detection]] = defaultdict(list)
    for r in sorted(results, key=lambda r: r["score"]):
        if r["score"] >= score_threshold:
            x, y, width, height = r["bbox"]
            box = (x, y, x + width, y + height)
            detections[r["image_id"]].append((r["score"], classes[r["category_id"]], box))
    return detections


def _is_id(value: object) -> bool:
    return isinstance(value, (int, str))


def _is_number(value: object) -> bool:
    return is_number(value, _TOO_LARGE)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_TOO_LARGE = 1e9
_FIELDS: dict[str, Callable[[object], bool]] = {
    "image_id": _is_id,
    "category_id": _is_id,
    "bbox": _is_box,
    "score": _is_number,
}


def _require_known(kind: str, unknown: set[Any], path: Path, dataset_name: str) -> None:
    if unknown:
        examples = ", ".join(map(str, sorted(unknown, key=str)[:5]))
        raise ValueError(
            f"{path} has {len(unknown)} {kind} id(s) that are not in {dataset_name}, such as {examples}: it "
            "was made on another data set, or on another version of this one."
        )


def _draw_tile(
    record: Record, detections: list[Detection], class_names: list[str], colors: list[Color], tile_size: int
) -> Image.Image:
    refuse_special_file(record["file_name"])
    with Image.open(record["file_name"]) as file:
        image = file.convert("RGB")
    scale = tile_size / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    tile = image.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(tile)
    for annotation in record["annotations"]:
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        # Just outside the detection that fits perfectly, so that both can be seen.
        x0, y0, x1, y1 = np.array(box) * scale
        draw_dashed(draw, (x0 - 3, y0 - 3, x1 + 2, y1 + 2), _GROUND_TRUTH)
    for _, category, box in detections:
        draw.rectangle(pixels_of(np.array(box) * scale), outline=colors[category], width=2)
    for score, category, box in detections:  # over all boxes
        text = f"{class_names[category]} {score:.2f}"
        draw_label(draw, tile.size, np.array(box) * scale, text, colors[category], label_font(11))
    return on_square(tile, tile_size)


def _draw_header(sheet: Image.Image, title: str, counts: str, color: Color) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 10), title, fill=TEXT, font=label_font(17, bold=True))
    draw.text((GAP, 38), counts, fill=QUIET, font=label_font(12))
    x = sheet.width - 210
    if x > draw.textlength(title, font=label_font(17, bold=True)) + 3 * GAP:  # a single column has no room for it
        draw_dashed(draw, (x, 14, x + 24, 26), _GROUND_TRUTH)
        draw.text((x + 34, 12), "ground truth", fill=TEXT, font=label_font(12))
        draw.rectangle([x, 39, x + 23, 50], outline=color, width=2)
        draw.text((x + 34, 37), "detection: class, score", fill=TEXT, font=label_font(12))
