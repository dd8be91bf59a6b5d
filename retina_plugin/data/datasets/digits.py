"""Builds the quick-start detection set, handwritten digits on photographs, without a download.

Both come with scikit-learn: 1797 scans of digits (8x8, ``load_digits``) and two photographs of 427x640 pixels
(``load_sample_images``: china.jpg and flower.jpg, both CC BY 2.0). An image is a square piece of a photograph, resized
to 160x160 and dimmed, on which up to 20 digits are written in light inks of many tints, between about 18 and 90 pixels
high. One image in 20 has no digit.

Training sees neither the scans of the test images (most of which are by other hands, as scikit-learn keeps the order of
collection) nor their parts of the photographs: :data:`SPLITS` has the scans and the columns of each.

The set has COCO's format: ``train.json`` and ``test.json`` beside the folders ``train`` and ``test``. Its own fields
tell how an image was made: ``scan`` of an annotation is the index into ``load_digits``, ``background`` of an image the
photograph, the square ``[x, y, side]`` cut from it, and whether it is mirrored.

It is built when either part is first loaded, in ``$RETINA_PLUGIN_CACHE`` (default ``~/.cache/retina_plugin``, read when
the sets are registered), and always has the same bytes. :class:`DigitsRecipe` makes other sets of the kind.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retina_plugin.data.datasets.cache import build_once, cache_folder, register_parts

# Increased with every change of images or boxes, so that an outdated set is not used.
RECIPE_VERSION = 1


@dataclass(frozen=True)
class DigitsRecipe:
    """Parameters of a set. The defaults are those of ``configs/digits.yaml``; every set needs its own name."""

    name: str = "quick_start_digits"  # its parts are registered as NAME_train and NAME_test
    side: int = 160  # of an image, in pixels
    crop_sides: tuple[int, int] = (96, 200)  # smallest and largest square cut from a photograph, in pixels
    digit_heights: tuple[int, int] = (18, 90)  # smallest and largest, in pixels; log-uniformly distributed
    max_digits: int = 20  # of an image; digits that find no place are left out
    empty_fraction: float = 0.05  # of images without a digit


CLASSES = [str(digit) for digit in range(10)]
# The two parts share neither scans nor columns. The 16 columns between them are one JPEG block, which mixes its pixels.
SPLITS: dict[str, dict[str, Any]] = {
    "train": {"images": 800, "scans": (0, 1437), "columns": {"china.jpg": (224, 640), "flower.jpg": (0, 352)}},
    "test": {"images": 200, "scans": (1437, 1797), "columns": {"china.jpg": (0, 208), "flower.jpg": (368, 640)}},
}

_MAX_OVERLAP = 0.05  # of the smaller of two boxes
_DIMMING = 0.5  # of the photographs, so that light ink is visible everywhere
_INK_LEVELS = (150, 255)  # of each of red, green and blue
_MAX_PLACES = 20  # tried for a digit

Photos = dict[str, np.ndarray]  # uint8 (height, width, 3), RGB


def register_digits(recipe: DigitsRecipe) -> None:
    """Register the two parts of a set with Detectron2; the set is built when either is first loaded."""
    root = cache_folder() / f"{recipe.name}_v{RECIPE_VERSION}"
    register_parts(recipe.name, root, list(SPLITS), CLASSES, partial(build_digits, recipe=recipe))


def build_digits(root: str | os.PathLike, recipe: DigitsRecipe) -> None:
    """Write both parts of a set into the folder ``root``, unless it exists; see :func:`build_once`.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        OSError: the folder cannot be written.
    """

    def write(folder: Path) -> None:
        scans, labels, photos = _load_sources()
        for split in SPLITS:
            _write_split(folder, split, recipe, scans, labels, photos)

    build_once(Path(root), write)


def _load_sources() -> tuple[np.ndarray, np.ndarray, Photos]:
    """Load scans, uint8 (1797, 8, 8) with ink 255, their labels (1797,), and the photographs, 427 x 640."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The images of digits are made from scikit-learn's digits and photographs, and scikit-learn "
            f"does not import ({error}). Install it with: pip install scikit-learn pillow"
        ) from error
    digits, samples = load_digits(), load_sample_images()
    scans = (digits.images * (255 / 16)).astype(np.uint8)
    names = [Path(filename).name for filename in samples.filenames]
    return scans, digits.target, dict(zip(names, samples.images, strict=True))


def _write_split(
    folder: Path, split: str, recipe: DigitsRecipe, scans: np.ndarray, labels: np.ndarray, photos: Photos
) -> None:
    images: list[dict] = []
    annotations: list[dict] = []
    (folder / split).mkdir()
    for index in range(SPLITS[split]["images"]):
        # A generator for each image, so that an image does not depend on their number.
        rng = np.random.default_rng([RECIPE_VERSION, list(SPLITS).index(split), index])
        background = _choose_background(split, recipe, photos, rng)
        empty = render_background(photos, background, recipe.side)
        pixels, boxes, chosen = _write_digits(empty, split, recipe, scans, rng)
        image = {"id": index + 1, "file_name": f"{index:04d}.png", "width": recipe.side, "height": recipe.side}
        images.append({**image, "background": background})
        for box, scan in zip(boxes, chosen, strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": int(labels[scan]) + 1}
            annotations.append({**annotation, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "scan": scan})
        # Level 1 is fast, and higher levels hardly make photographs smaller.
        Image.fromarray(pixels).save(folder / split / f"{index:04d}.png", compress_level=1)
    description = f"Handwritten digits on photographs, {split} part, from the data of scikit-learn"
    coco = {
        "info": {"description": description, "version": str(RECIPE_VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / f"{split}.json").write_text(json.dumps(coco))


def _choose_background(split: str, recipe: DigitsRecipe, photos: Photos, rng: np.random.Generator) -> dict[str, Any]:
    photo = sorted(photos)[rng.integers(len(photos))]
    side = int(rng.integers(*recipe.crop_sides, endpoint=True))
    left, right = SPLITS[split]["columns"][photo]
    x = int(rng.integers(left, right - side, endpoint=True))
    y = int(rng.integers(0, photos[photo].shape[0] - side, endpoint=True))
    return {"photo": photo, "square": [x, y, side], "mirrored": bool(rng.integers(2))}


def render_background(photos: Photos, background: dict[str, Any], side: int) -> np.ndarray:
    """Render the image, uint8 (side, side, 3), without digits, given an image's ``background`` field."""
    x, y, cut = background["square"]
    piece = photos[background["photo"]][y : y + cut, x : x + cut]
    image = np.asarray(Image.fromarray(piece).resize((side, side), Image.Resampling.BICUBIC))
    image = (image * _DIMMING).astype(np.uint8)
    return image[:, ::-1] if background["mirrored"] else image


def _write_digits(
    background: np.ndarray, split: str, recipe: DigitsRecipe, scans: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """Returns the image, the boxes ``[x, y, width, height]`` around the ink in pixels, and the scans."""
    image = background.astype(np.float64)
    boxes: list[list[int]] = []
    chosen = []
    wanted = 0 if rng.random() < recipe.empty_fraction else int(rng.integers(1, recipe.max_digits, endpoint=True))
    # Log-uniform: as many digits between 20 and 40 pixels as between 40 and 80. The tall ones come first, because short
    # ones find a place between them.
    shortest, tallest = np.log(recipe.digit_heights)
    for digit_height in sorted(np.exp(rng.uniform(shortest, tallest, wanted)), reverse=True):
        scan = int(rng.integers(*SPLITS[split]["scans"]))
        alpha = _ink(scans[scan], digit_height, rng)
        height, width = alpha.shape
        for _ in range(_MAX_PLACES):
            x, y = int(rng.integers(recipe.side - width + 1)), int(rng.integers(recipe.side - height + 1))
            if all(_overlap((x, y, width, height), box) <= _MAX_OVERLAP for box in boxes):
                patch = image[y : y + height, x : x + width]
                ink = rng.integers(*_INK_LEVELS, 3, endpoint=True)
                patch += alpha[:, :, None] * rng.uniform(0.85, 1.0) * (ink - patch)
                boxes.append([x, y, width, height])
                chosen.append(scan)
                break
    return np.rint(image).astype(np.uint8), boxes, chosen


def _ink(scan: np.ndarray, height: float, rng: np.random.Generator) -> np.ndarray:
    """Enlarge a scan (8, 8) to an opacity (h, w) in [0, 1] that has ink in every border row and column."""
    margin = 2  # room for the turn
    enlarged = height * (8 + 2 * margin) / 8
    size = round(enlarged * rng.uniform(0.8, 1.1)), round(enlarged)
    large = Image.fromarray(np.pad(scan, margin)).resize(size, Image.Resampling.BICUBIC)
    turned = large.rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC)
    # Gray stays half transparent: the holes of an 8 are rarely white at this resolution.
    alpha = np.clip((np.asarray(turned, dtype=np.float64) / 255 - 0.4) / 0.45, 0, 1)
    alpha[alpha < 0.15] = 0
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Area of the intersection of two boxes ``[x, y, width, height]``, divided by the area of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])
