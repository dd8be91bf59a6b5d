"""Whether images can be read, have the size that their boxes were made for, and keep their content when read."""

import os
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.file_io import PathManager

from . import image_files
from .findings import ERROR, NOTE, WARNING, declare

NO_FOLDER = declare(
    "image-folder-missing", ERROR, "Training stops at the first batch.", "Correct the folder of images."
)
_STOPS = "Training takes another image instead, and stops when DATALOADER.MAX_UNREADABLE are such; evaluation stops."
MISSING = declare("image-missing", ERROR, _STOPS, "Put the file there, or remove the entry. --fix removes it.")
OTHER_NAME = declare(
    "image-name-differs",
    ERROR,
    f"{_STOPS} A file of another spelling is there.",
    "Correct the name (case, slashes, accents). --fix does.",
)
EMPTY = declare("image-empty", ERROR, _STOPS, "Copy or download it again. --fix removes the entry.")
NOT_IMAGE = declare("image-not-image", ERROR, _STOPS, "Replace the file by the image. --fix removes the entry.")
TRUNCATED = declare("image-truncated", ERROR, _STOPS, "Copy or download it again. --fix removes the entry.")
DAMAGED = declare(
    "image-damaged",
    ERROR,
    "Training takes another image instead, or sees noise or gray in a part of it.",
    "Copy or download it again. --fix removes the entry.",
)
UNREADABLE = declare(
    "image-unreadable", ERROR, _STOPS, "Make the file readable, or replace it. --fix removes the entry."
)
SIZE = declare(
    "image-size",
    ERROR,
    "A SizeMismatchError: training takes another image instead, and evaluation stops.",
    "Correct width and height, or scale the boxes if the file was resized. --fix corrects them where the boxes fit "
    "and the file is no resized one.",
)
TURNED = declare(
    "image-size-turned",
    ERROR,
    "The boxes were made for the pixels as stored, but Detectron2 turns the image as its EXIF says, and raises a "
    "SizeMismatchError: training takes another image instead, and evaluation stops.",
    "Remove the orientation from the files' EXIF (exiftool -Orientation= FILE), so that they are read as stored.",
)
ORIENTATION = declare(
    "image-orientation",
    WARNING,
    "Detectron2 turns or mirrors the image as its EXIF says; its size does not tell whether the boxes are for that.",
    "Look at one with its boxes; if they are for the pixels as stored, remove the orientation from the file.",
)
VANISHES = declare(
    "image-vanishes",
    ERROR,
    "MAX_SIZE_TRAIN leaves no pixel of its short side: the image cannot be used.",
    "Cut the image into pieces, or remove it.",
)
SLIVER = declare(
    "image-sliver",
    WARNING,
    "MAX_SIZE_TRAIN leaves less than 32 pixels of its short side, the side of P3's smallest anchor.",
    "Cut the image into pieces, or raise INPUT.MAX_SIZE_TRAIN.",
)
PATH = declare(
    "image-path",
    WARNING,
    "The name leads out of the folder of images: a copy of the data set elsewhere reads other files or none.",
    "Use names relative to the folder.",
)
DEEP = declare(
    "image-16-bit",
    ERROR,
    "Detectron2 reads 8 bits and cuts at 255: nearly all of the image becomes white.",
    "Convert the files to 8 bits, scaled.",
)
TRANSPARENT = declare(
    "image-transparent",
    WARNING,
    "Detectron2 drops the transparency: what it hid is seen.",
    "Flatten the image on the background it is meant for.",
)
COLOURS = declare(
    "image-colors",
    NOTE,
    "Detectron2 converts the image to three channels of 8 bits: fine for gray, palettes and opaque RGBA; CMYK is "
    "converted without its profile.",
    "Nothing, if test images are of the same kind.",
)

_KINDS = {
    image_files.MISSING: MISSING,
    image_files.EMPTY: EMPTY,
    image_files.NOT_IMAGE: NOT_IMAGE,
    image_files.TRUNCATED: TRUNCATED,
    image_files.DAMAGED: DAMAGED,
    image_files.UNREADABLE: UNREADABLE,
}
NO_READ = (MISSING, EMPTY, NOT_IMAGE, TRUNCATED, DAMAGED, UNREADABLE)  # kinds of images that cannot be used
_SHORTEST_SIDE = 32  # pixels, in training


def check_images(images, data, cfg, files, found):
    """Check the images.

    Args:
        images (list): entries with all fields.
        data (DataSet): that they are from.
        cfg: the configuration.
        files (ImageFiles): that looks into them, or None to leave files alone.
        found (Findings): gets what is wrong.
    """
    for image in images:
        if data.image_root is not None:
            _check_path(image, found)
        _check_training_size(image, cfg, found)
    if files is None:
        return
    if data.image_root is not None and not PathManager.isdir(data.image_root):
        found.add(NO_FOLDER, f"no folder {data.image_root}")
        return
    for image, file in zip(images, files.look(data.path(image) for image in images)):
        if file.problem == image_files.MISSING:
            _report_missing(image, data, found)
        elif file.problem:
            found.add(_KINDS[file.problem], file.detail, image)
        else:
            _check_size(image, file, found)
            _check_colors(image, file, cfg, found)


def _check_path(image, found):
    name = image["file_name"]
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        found.add(PATH, "an absolute path", image)
    elif ".." in PurePosixPath(name).parts:
        found.add(PATH, "leaves the folder by ..", image)


def _check_training_size(image, cfg, found):
    width, height = int(image["width"]), int(image["height"])
    for short_edge in training_edges(cfg)[-1:]:
        training = min(ResizeShortestEdge.get_output_shape(height, width, short_edge, cfg.INPUT.MAX_SIZE_TRAIN))
        if training < 1:
            found.add(VANISHES, f"{width} x {height}", image)
        elif training < _SHORTEST_SIDE <= short_edge:
            found.add(SLIVER, f"{width} x {height}: {training} pixels", image)


def training_edges(cfg):
    """Smallest and largest short side in training, one if they are equal; none if images keep their size."""
    sizes = np.atleast_1d(cfg.INPUT.MIN_SIZE_TRAIN).tolist()
    return sorted({size for size in (min(sizes), max(sizes)) if size > 0})


def _check_size(image, file, found):
    expected, turned = (int(image["width"]), int(image["height"])), file.turned_size
    if expected == turned:
        # With sides of its own, the size tells that the boxes are for the turned image.
        if file.orientation not in (0, 1) and (not file.swaps_sides or turned[0] == turned[1]):
            found.add(ORIENTATION, f"EXIF orientation {file.orientation}", image)
    elif expected == file.size and file.swaps_sides:
        detail = f"{_size(expected)} in the JSON and as stored, {_size(turned)} by EXIF orientation {file.orientation}"
        found.add(TURNED, detail, image)
    else:
        swapped = ", width and height swapped" if expected == turned[::-1] else ""
        by_exif = f" (after EXIF orientation {file.orientation})" if file.swaps_sides else ""
        found.add(SIZE, f"{_size(expected)} in the JSON, {_size(turned)} in the file{by_exif}{swapped}", image)


def _check_colors(image, file, cfg, found):
    if file.mode.startswith(("I", "F")):
        found.add(DEEP, f"mode {file.mode}", image)
    elif file.transparent:
        found.add(TRANSPARENT, f"mode {file.mode}", image)
    elif file.mode not in ("RGB", cfg.INPUT.FORMAT):
        found.add(COLOURS, f"mode {file.mode}", image)


def _size(size):
    return f"{size[0]} x {size[1]}"


def _report_missing(image, data, found):
    spelling = spelt_otherwise(image, data)
    if spelling is not None:
        found.add(OTHER_NAME, f"the file is {spelling}", image)
        return
    path = data.path(image)
    stem, base = os.path.splitext(os.path.basename(path))[0], os.path.basename(image["file_name"])
    near = [name for name in data.names_in(os.path.dirname(path)) if os.path.splitext(name)[0] == stem]
    if not near and data.image_root is not None and base in data.names_in(data.image_root):
        near = [base]
    found.add(MISSING, f"no file {path}" + (f", but {near[0]}" if near else ""), image)


def spelt_otherwise(image, data):
    """The name, relative to the folder of images, of the one file that an image means; None if there is none."""
    name = image["file_name"]
    if os.path.exists(data.path(image)):
        return None
    folder, rest = data.image_root or "", name.replace("\\", "/")
    if data.image_root is None:
        folder, rest = os.path.split(rest)
    parts = []
    for part in PurePosixPath(rest).parts:
        same = [entry for entry in data.names_in(os.path.join(folder, *parts)) if _folded(entry) == _folded(part)]
        if part in same:
            same = [part]
        if len(same) != 1:
            return None
        parts.append(same[0])
    found = os.path.join(*parts) if parts else ""
    return (found if data.image_root is not None else os.path.join(folder, found)) if parts else None


def _folded(name):
    return unicodedata.normalize("NFC", name).casefold()
