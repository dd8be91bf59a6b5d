"""The quick-start detection set: real handwritten digits on real photographs, made without a download.

Both come with scikit-learn: 1797 scans of digits (8x8, ``load_digits``) and two photographs of 427x640
pixels (``load_sample_images``: china.jpg and flower.jpg, both CC BY 2.0). An image is a square piece of a
photograph, brought to 160x160 and dimmed, on which up to 20 digits are written in light inks of many tints,
between about 18 and 90 pixels high. One image in 20 has no digit. The photograph is the clutter.

========================  ========  ==============  ====================  =====================
data set                  images  scans           columns of china.jpg  columns of flower.jpg
========================  ========  ==============  ====================  =====================
quick_start_digits_train  800       0 to 1436       224 to 639            0 to 351
quick_start_digits_test   200       1437 to 1796    0 to 207              368 to 639
========================  ========  ==============  ====================  =====================

So the test digits are scans that training never sees (and, as scikit-learn keeps the scans in the order they
were collected, mostly by other hands), on parts of the photographs that training never sees.

The set is COCO format: ``train.json`` and ``test.json`` beside the folders ``train`` and ``test``. Beyond
COCO's own fields, an annotation has ``scan`` (the index into ``load_digits``) and an image has ``background``
(the photograph, the square ``[x, y, side]`` cut from it, and whether it is mirrored), which is all one needs
to check the above.

It is built when either part is first loaded, in ``$RETINA_PLUGIN_CACHE`` (default ``~/.cache/retina_plugin``,
read when the sets are registered), and has the same bytes every time.

:class:`DigitsRecipe` makes other sets of the same kind, with other images or fewer digits.
"""

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

# Goes up with every change to the images or the boxes, so that nobody trains on a stale set.
RECIPE_VERSION = 1


@dataclass(frozen=True)
class DigitsRecipe:
    """What a set looks like. The defaults are the quick start's; two sets need two names.

    Attributes:
        name: of the set; its parts are registered as ``NAME_train`` and ``NAME_test``.
        side: of an image, in pixels.
        crop_sides: smallest and largest side of the square cut from a photograph, in pixels.
        digit_heights: smallest and largest height of a digit, in pixels, even in the logarithm.
        max_digits: an image has between 1 and as many; those that find no place are left out.
        empty_fraction: of images without a digit.
    """

    name: str = "quick_start_digits"
    side: int = 160
    crop_sides: tuple = (96, 200)
    digit_heights: tuple = (18, 90)
    max_digits: int = 20
    empty_fraction: float = 0.05


CLASSES = [str(digit) for digit in range(10)]
# What keeps the two parts apart. The 16 columns between them are one JPEG block, which mixes its pixels.
SPLITS = {
    "train": {
        "images": 800,
        "scans": (0, 1437),
        "columns": {"china.jpg": (224, 640), "flower.jpg": (0, 352)},
    },
    "test": {
        "images": 200,
        "scans": (1437, 1797),
        "columns": {"china.jpg": (0, 208), "flower.jpg": (368, 640)},
    },
}

_MAX_OVERLAP = 0.05  # of the smaller of two boxes
_DIMMING = 0.5  # of the photographs, so that light ink shows everywhere
_INK_LEVELS = (150, 255)  # of each of red, green and blue


def register_digits(recipe):
    """Registers the two parts of a set with Detectron2; it is built when either is first loaded."""
    root = _cache_folder() / f"{recipe.name}_v{RECIPE_VERSION}"
    for split in SPLITS:
        name = f"{recipe.name}_{split}"
        DatasetCatalog.register(name, partial(_load, name, root, split, recipe))
        MetadataCatalog.get(name).set(evaluator_type="coco", thing_classes=CLASSES)


def _load(name, root, split, recipe):
    build_digits(root, recipe)
    json_file, image_root = str(root / f"{split}.json"), str(root / split)
    # Not earlier: a path in the metadata is one that exists.
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root)
    return load_coco_json(json_file, image_root, name)


def build_digits(root, recipe):
    """Writes both parts of a set into the folder ``root``, unless it is there already.

    The set is written beside ``root`` and then renamed to it, so ``root`` holds either the whole set or does
    not exist, also if the process is interrupted or several build the set at the same time.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        OSError: the folder cannot be written.
    """
    root = Path(root)
    if root.is_dir():
        return
    scans, labels, photos = _load_sources()
    unfinished = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        for split in SPLITS:
            _write_split(unfinished, split, recipe, scans, labels, photos)
        try:
            unfinished.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster, and its set has the same bytes
                raise
    except OSError as error:
        raise OSError(
            f"The data set {recipe.name} cannot be written to {root} ({error}). Set the environment variable "
            "RETINA_PLUGIN_CACHE to a folder that can be written, with 100 MB of free space."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _cache_folder():
    return Path(os.environ.get("RETINA_PLUGIN_CACHE") or "~/.cache/retina_plugin").expanduser().absolute()


def _load_sources():
    """Returns scans (1797, 8, 8) uint8 with ink 255, labels (1797,), photos {name: (427, 640, 3) RGB}."""
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


def _write_split(folder, split, recipe, scans, labels, photos):
    images, annotations = [], []
    (folder / split).mkdir()
    for index in range(SPLITS[split]["images"]):
        # One generator an image: an image does not depend on how many there are.
        rng = np.random.default_rng([RECIPE_VERSION, list(SPLITS).index(split), index])
        background = _choose_background(split, recipe, photos, rng)
        empty = render_background(photos, background, recipe.side)
        image, boxes, chosen = _write_digits(empty, split, recipe, scans, rng)
        image = {"id": index + 1, "file_name": f"{index:04d}.png", "width": recipe.side, "height": recipe.side}
        images.append({**image, "background": background})
        for box, scan in zip(boxes, chosen, strict=True):
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": index + 1,
                "category_id": int(labels[scan]) + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "scan": scan,
            })  # fmt: skip
        # Level 1 is fast, and photographs hardly get smaller with more.
        Image.fromarray(image).save(folder / split / image["file_name"], compress_level=1)
    coco = {
        "info": {
            "description": f"Handwritten digits on photographs, {split} part, from the data of scikit-learn",
            "version": str(RECIPE_VERSION),
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / f"{split}.json").write_text(json.dumps(coco))


def _choose_background(split, recipe, photos, rng):
    photo = sorted(photos)[rng.integers(len(photos))]
    side = int(rng.integers(*recipe.crop_sides, endpoint=True))
    left, right = SPLITS[split]["columns"][photo]
    x = int(rng.integers(left, right - side, endpoint=True))
    y = int(rng.integers(0, photos[photo].shape[0] - side, endpoint=True))
    return {"photo": photo, "square": [x, y, side], "mirrored": bool(rng.integers(2))}


def render_background(photos, background, side):
    """Returns the image (side, side, 3) without digits, given an image's ``background`` field."""
    x, y, cut = background["square"]
    piece = photos[background["photo"]][y : y + cut, x : x + cut]
    image = np.asarray(Image.fromarray(piece).resize((side, side), Image.BICUBIC))
    image = (image * _DIMMING).astype(np.uint8)
    return image[:, ::-1] if background["mirrored"] else image


def _write_digits(background, split, recipe, scans, rng):
    """Returns the image, the boxes ``[x, y, width, height]`` around the ink in pixels, and the scans."""
    image, boxes, chosen = background.astype(np.float64), [], []
    wanted = 0 if rng.random() < recipe.empty_fraction else rng.integers(1, recipe.max_digits, endpoint=True)
    # Even in the logarithm: as many digits between 20 and 40 pixels as between 40 and 80. The tall ones come
    # first, as the short ones find a place between them.
    for digit_height in sorted(np.exp(rng.uniform(*np.log(recipe.digit_heights), wanted)), reverse=True):
        scan = int(rng.integers(*SPLITS[split]["scans"]))
        alpha = _ink(scans[scan], digit_height, rng)
        height, width = alpha.shape
        for _ in range(20):  # places to try; a digit that finds none is left out
            x, y = int(rng.integers(recipe.side - width + 1)), int(rng.integers(recipe.side - height + 1))
            if all(_overlap((x, y, width, height), box) <= _MAX_OVERLAP for box in boxes):
                patch = image[y : y + height, x : x + width]
                ink = rng.integers(*_INK_LEVELS, 3, endpoint=True)
                patch += alpha[:, :, None] * rng.uniform(0.85, 1.0) * (ink - patch)
                boxes.append([x, y, width, height])
                chosen.append(scan)
                break
    return np.rint(image).astype(np.uint8), boxes, chosen


def _ink(scan, height, rng):
    """Enlarges a scan (8, 8) to an opacity (h, w) in [0, 1] that has ink in every border row and column."""
    margin = 2  # room for the turn
    enlarged = height * (8 + 2 * margin) / 8
    size = round(enlarged * rng.uniform(0.8, 1.1)), round(enlarged)
    soft = Image.fromarray(np.pad(scan, margin)).resize(size, Image.BICUBIC)
    soft = np.asarray(soft.rotate(rng.uniform(-6, 6), Image.BICUBIC), dtype=np.float64) / 255
    # Keeps what is gray in the scan half transparent: the holes of an 8 are rarely white at this resolution.
    alpha = np.clip((soft - 0.4) / 0.45, 0, 1)
    alpha[alpha < 0.15] = 0
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(a, b):
    """Area of the intersection of two boxes ``[x, y, width, height]`` over the area of the smaller."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])
