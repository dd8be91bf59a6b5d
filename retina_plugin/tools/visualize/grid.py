"""One image that shows what a detector found: a grid of images with ground truth and detections.

Works for every registered data set in COCO format and for the ``coco_instances_results.json`` that
Detectron2's ``COCOEvaluator`` leaves in its output folder.
"""

import colorsys
import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw, ImageFont

_PAPER, _TEXT, _QUIET = (24, 26, 32), (240, 240, 240), (160, 166, 178)
_GROUND_TRUTH = (255, 255, 255)
_GAP = 8
_HEADER = 64
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # Pillow alone has no font that scales everywhere


def draw_contact_sheet(
    dataset_name,
    predictions_json,
    output_path,
    *,
    num_images=12,
    score_threshold=0.5,
    columns=4,
    tile_size=288,
):
    """Draws images of a data set with their ground truth (dashed white) and detections (a color a class).

    Args:
        dataset_name (str): registered data set, loaded through Detectron2's ``DatasetCatalog``.
        predictions_json (str or Path): a COCO result list, ``[{image_id, category_id, bbox, score}, ...]``
            with the data set's own category ids and ``bbox`` as ``[x, y, width, height]`` in pixels.
        output_path (str or Path): the PNG to write. Its folder is made if need be.
        num_images (int): images on the sheet, spread evenly over the data set; all of them if it has fewer.
        score_threshold (float): detections below are left out.
        columns (int): images in a row.
        tile_size (int): pixels that the longer side of an image is brought to.

    Returns:
        Path: ``output_path``.

    Raises:
        FileNotFoundError: there is no such predictions file.
        ValueError: it is not a COCO result list, or not one of this data set.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    detections = _read_detections(predictions_json, dataset_name, records, metadata, score_threshold)
    shown = [records[i] for i in np.linspace(0, len(records) - 1, min(num_images, len(records))).astype(int)]
    colors = _class_colors(len(metadata.thing_classes))

    tiles, num_objects, num_detections = [], 0, 0
    for record in shown:
        found = detections[record["image_id"]]
        tiles.append(_draw_tile(record, found, metadata.thing_classes, colors, tile_size))
        num_objects += len(record["annotations"])
        num_detections += len(found)
    sheet = _arrange(tiles, columns)
    _draw_header(
        sheet,
        f"{dataset_name}: {len(shown)} of {len(records)} images",
        f"{num_objects} objects, {num_detections} detections with a score of {score_threshold:g} or more",
        colors[0],
    )
    output_path = Path(output_path)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    # 256 colors are hard to tell from all of them here, and make the file four times smaller.
    sheet.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(output_path, optimize=True)
    return output_path


def _read_detections(path, dataset_name, records, metadata, score_threshold):
    """Returns ``{image_id: [(score, class, (x0, y0, x1, y1)), ...]}``, lowest score first, so drawn first."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No predictions file {path}. Detectron2's COCOEvaluator writes it as "
            "coco_instances_results.json when it is given an output_dir."
        )
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    fields = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(results, list) or not all(isinstance(r, dict) and fields <= r.keys() for r in results):
        names = ", ".join(sorted(fields))
        raise ValueError(f"{path} is not a COCO result list: a list of objects with {names}.")

    image_ids = {record["image_id"] for record in records}
    classes = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
    if classes is None:  # a data set without ids of its own counts its classes from 0
        classes = {i: i for i in range(len(metadata.thing_classes))}
    _require_known("image", {r["image_id"] for r in results} - image_ids, path, dataset_name)
    _require_known("category", {r["category_id"] for r in results} - classes.keys(), path, dataset_name)

    detections = defaultdict(list)
    for r in sorted(results, key=lambda r: r["score"]):
        if r["score"] >= score_threshold:
            x, y, width, height = r["bbox"]
            box = (x, y, x + width, y + height)
            detections[r["image_id"]].append((r["score"], classes[r["category_id"]], box))
    return detections


def _require_known(kind, unknown, path, dataset_name):
    if unknown:
        examples = ", ".join(map(str, sorted(unknown, key=str)[:5]))
        raise ValueError(
            f"{path} has {len(unknown)} {kind} id(s) that are not in {dataset_name}, such as {examples}: it "
            "was made on another data set, or on another version of this one."
        )


def _class_colors(num_classes):
    """Bright RGB colors, neighbors far apart (by the golden angle), on which black text can be read."""
    hues = (0.08 + 0.618034 * np.arange(num_classes)) % 1
    return [tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.7, 1.0)) for hue in hues]


def _draw_tile(record, detections, class_names, colors, tile_size):
    with Image.open(record["file_name"]) as file:
        image = file.convert("RGB")
    scale = tile_size / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    tile = image.resize(size, Image.BICUBIC)
    draw = ImageDraw.Draw(tile)
    for annotation in record["annotations"]:
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        # Just outside the detection that fits perfectly, so that both can be seen.
        x0, y0, x1, y1 = np.array(box) * scale
        _draw_dashed(draw, (x0 - 3, y0 - 3, x1 + 2, y1 + 2))
    for _, category, box in detections:
        draw.rectangle(_drawable(np.array(box) * scale), outline=colors[category], width=2)
    for score, category, box in detections:  # over all boxes
        text = f"{class_names[category]} {score:.2f}"
        _draw_label(draw, tile.size, np.array(box) * scale, text, colors[category])
    square = Image.new("RGB", (tile_size, tile_size), _PAPER)
    square.paste(tile, ((tile_size - tile.width) // 2, (tile_size - tile.height) // 2))
    return square


def _drawable(box):
    """Pixels (inclusive) of an edge-to-edge box; Pillow refuses boxes whose second corner comes first."""
    x0, y0, x1, y1 = (round(float(c)) for c in box)
    return [x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)]


def _draw_dashed(draw, box, dash=4):
    x0, y0, x1, y1 = _drawable(box)
    for x in range(x0, x1 + 1, 2 * dash):
        for y in (y0, y1):
            draw.line([x, y, min(x + dash - 1, x1), y], fill=_GROUND_TRUTH)
    for y in range(y0, y1 + 1, 2 * dash):
        for x in (x0, x1):
            draw.line([x, y, x, min(y + dash - 1, y1)], fill=_GROUND_TRUTH)


def _draw_label(draw, tile_size, box, text, color):
    font = _font(11)
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(0, round(float(box[0]))), tile_size[0] - width)
    y = round(float(box[1])) - height
    if y < 0:  # no room above: inside the box
        y = max(0, round(float(box[1])))
    draw.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
    draw.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)


def _font(size, bold=False):
    return ImageFont.truetype(str(_FONTS / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)


def _arrange(tiles, columns):
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    step = tiles[0].width + _GAP
    sheet = Image.new("RGB", (_GAP + columns * step, _HEADER + rows * step), _PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + i % columns * step, _HEADER + i // columns * step))
    return sheet


def _draw_header(sheet, title, counts, color):
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 10), title, fill=_TEXT, font=_font(17, bold=True))
    draw.text((_GAP, 38), counts, fill=_QUIET, font=_font(12))
    x = sheet.width - 210
    if x > draw.textlength(title, font=_font(17, bold=True)) + 3 * _GAP:  # a single column has no room for it
        _draw_dashed(draw, (x, 14, x + 24, 26))
        draw.text((x + 34, 12), "ground truth", fill=_TEXT, font=_font(12))
        draw.rectangle([x, 39, x + 23, 50], outline=color, width=2)
        draw.text((x + 34, 37), "detection: class, score", fill=_TEXT, font=_font(12))
