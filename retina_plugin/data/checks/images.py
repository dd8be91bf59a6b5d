"""Checks that images can be read, have the annotated size, keep their content when they are read, and have boxes."""

from collections import Counter
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge

from retina_plugin.data.checks import image_files
from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.dropped import CROWD, NOT_LOADED, count_reasons
from retina_plugin.data.checks.entries import is_box
from retina_plugin.data.checks.findings import KINDS, Entry, Finding, Findings, error_kind, note_kind, warning_kind
from retina_plugin.data.checks.names import NOT_READ
from retina_plugin.data.checks.repair import Editor, drop_image, repairs

_COPY = "Copy or download it again. --fix removes the entry."
EMPTY = error_kind(f"image-empty: {NOT_READ} {_COPY}")
NOT_IMAGE = error_kind(f"image-not-image: {NOT_READ} Replace the file by the image. --fix removes the entry.")
TRUNCATED = error_kind(f"image-truncated: {NOT_READ} {_COPY}")
DAMAGED = error_kind(f"""image-damaged: Training takes another image instead, or sees noise or gray in a part of it.
    {_COPY}""")
UNREADABLE = error_kind(f"image-unreadable: {NOT_READ} Make it readable or replace it. --fix removes the entry.")
repairs(EMPTY, NOT_IMAGE, TRUNCATED, DAMAGED, UNREADABLE)(drop_image)

SIZE = error_kind("""image-size: A SizeMismatchError: training takes another image instead, and evaluation stops.
    Correct width and height or, if the file was resized, scale the boxes. --fix corrects them if the boxes fit and it
    was not resized.""")
_MIN_RATIO = 0.02  # difference in proportion of the sides below which an image was only resized


@repairs(SIZE)
def _correct_size(editor: Editor, finding: Finding) -> str | None:
    image, file = finding.entry, editor.file(finding.entry)
    if file is None or file.swaps_sides:
        return None
    (width, height), (true_width, true_height) = (image["width"], image["height"]), file.turned_size
    if abs(true_width * height / (width * true_height) - 1) < _MIN_RATIO:
        return None  # resized: the boxes are for the size in the JSON
    for annotation in editor.annotations_of.get(image["id"], ()):
        box: Any = annotation.get("bbox")
        if is_box(box) and (box[0] + box[2] > true_width + 1 or box[1] + box[3] > true_height + 1):
            return None
    image["width"], image["height"] = true_width, true_height
    return "size taken from the file"


TURNED = error_kind("""image-size-turned: The boxes were made for the pixels as stored, but Detectron2 turns the image
    as its EXIF says, and raises a SizeMismatchError: training takes another image instead, and evaluation stops. Remove
    the orientation from the files' EXIF (exiftool -Orientation= FILE), so that they are read as stored.""")
ORIENTATION = warning_kind("""image-orientation: Detectron2 turns or mirrors the image as its EXIF says; its size does
    not tell whether the boxes are for that. Look at one with boxes; if they are for the pixels as stored, remove the
    EXIF orientation.""")
VANISHES = error_kind("""image-vanishes: MAX_SIZE_TRAIN leaves no pixel of its short side: it cannot be used. Cut it up,
    or remove it.""")
SLIVER = warning_kind("""image-sliver: MAX_SIZE_TRAIN leaves less than 32 pixels of its short side, the side of P3's
    smallest anchor. Cut the image into pieces, or raise INPUT.MAX_SIZE_TRAIN.""")
DEEP = error_kind("""image-16-bit: Detectron2 cuts pixels at 255: nearly all of the image becomes white. Scale the files
    to 8 bits.""")
TRANSPARENT = warning_kind("""image-transparent: Detectron2 drops the transparency: hidden pixels are seen. Flatten the
    image on the background it is meant for.""")
COLORS = note_kind(
    """image-colors: Detectron2 converts the image to three channels of 8 bits: fine for gray, palettes
    and opaque RGBA; CMYK is converted without its profile. Nothing to do if test images are of the same kind.""",
    is_advice=True,
)

_SHORTEST_SIDE = 32  # pixels, in training


@check
def check_images(context: Context) -> None:
    """Find images that cannot be read, have another size, or lose content when they are read."""
    data, cfg, found = context.data, context.cfg, context.found
    for image in context.entries.images:
        _check_training_size(image, cfg, found)
    if context.files is None or not data.has_folder():
        return
    files = context.files.look(data.path(image) for image in context.entries.images)
    for image, file in zip(context.entries.images, files):
        if file.problem is None:
            _check_size(image, file, context)
            _check_colors(image, file, cfg, found)
        elif file.problem != image_files.MISSING:  # which check_names reports
            found.add(KINDS[f"image-{file.problem}"], file.detail, image)


def _check_training_size(image: Entry, cfg: CfgNode, found: Findings) -> None:
    width, height = int(image["width"]), int(image["height"])
    for short_edge in training_edges(cfg)[-1:]:
        training = min(ResizeShortestEdge.get_output_shape(height, width, short_edge, cfg.INPUT.MAX_SIZE_TRAIN))
        if training < 1:
            found.add(VANISHES, f"{width} x {height}", image)
        elif training < _SHORTEST_SIDE <= short_edge:
            found.add(SLIVER, f"{width} x {height}: {training} pixels", image)


def training_edges(cfg: CfgNode) -> list[int]:
    """Smallest and largest short side in training, one if they are equal; empty if images keep their size."""
    sizes = np.atleast_1d(cfg.INPUT.MIN_SIZE_TRAIN).tolist()
    return sorted({size for size in (min(sizes), max(sizes)) if size > 0})


def _check_size(image: Entry, file: image_files.ImageFile, context: Context) -> None:
    found, expected, turned = context.found, (int(image["width"]), int(image["height"])), file.turned_size
    if expected != turned:
        context.wrong_sizes.add(id(image))
    if expected == turned:
        # If width and height differ and EXIF swaps them, the size shows that the boxes are for the turned image.
        if file.orientation not in (0, 1) and (not file.swaps_sides or turned[0] == turned[1]):
            found.add(ORIENTATION, f"EXIF orientation {file.orientation}", image)
    elif expected == file.size and file.swaps_sides:
        detail = f"{_size(expected)} in the JSON and as stored, {_size(turned)} by EXIF orientation {file.orientation}"
        found.add(TURNED, detail, image)
    else:
        swapped = ", width and height swapped" if expected == turned[::-1] else ""
        by_exif = f" (after EXIF orientation {file.orientation})" if file.swaps_sides else ""
        found.add(SIZE, f"{_size(expected)} in the JSON, {_size(turned)} in the file{by_exif}{swapped}", image)


def _check_colors(image: Entry, file: image_files.ImageFile, cfg: CfgNode, found: Findings) -> None:
    if file.mode.startswith(("I", "F")):
        found.add(DEEP, f"mode {file.mode}", image)
    elif file.transparent:
        found.add(TRANSPARENT, f"mode {file.mode}", image)
    elif file.mode not in ("RGB", cfg.INPUT.FORMAT):
        found.add(COLORS, f"mode {file.mode}", image)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


NOTHING = error_kind("""nothing-to-train: No image has a box that training can use: Detectron2 stops when it builds the
    loader, or trains on background alone. Add annotations, or correct what is reported about them above.""")
NO_BOXES = warning_kind(
    """image-without-boxes: Training drops the image. If it is meant as an example without objects,
    set DATALOADER.FILTER_EMPTY_ANNOTATIONS False.""",
    is_advice=True,
)
CROWD_ONLY = warning_kind("""image-crowd-only: All its boxes are groups (iscrowd), which training leaves out: it drops
    the image. Draw boxes around single objects, or leave it as it is.""")
MANY_BOXES = warning_kind("""image-many-boxes: No detector can find more boxes than TEST.DETECTIONS_PER_IMAGE; AP counts
    TEST.AP_DETECTIONS_PER_IMAGE. Cut the image into pieces, or raise both.""")


@check
def check_boxes_per_image(context: Context) -> None:
    """Find images without boxes, with groups alone, and with more boxes than a detector may find."""
    (images, annotations, _), cfg, found = context.entries, context.cfg, context.found
    if "annotations" not in context.data.coco:
        return
    if images and len(context.dropped) == len(annotations):
        number = len(context.data.coco["annotations"])
        reasons = count_reasons(Counter(context.dropped.values()))
        found.add(
            NOTHING, f"{len(images)} images, and none of {number} annotations is used" + f": {reasons}" * bool(reasons)
        )
        return
    loaded = Counter(a["image_id"] for a in annotations if context.dropped.get(id(a)) not in NOT_LOADED)
    crowds = Counter(a["image_id"] for a in annotations if context.dropped.get(id(a)) == CROWD)
    most = min(cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.AP_DETECTIONS_PER_IMAGE)
    for image in images:
        number, groups = loaded[image["id"]], crowds[image["id"]]
        if number > most:
            found.add(MANY_BOXES, f"{number} boxes", image)
        elif number == 0 and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            kind, detail = (CROWD_ONLY, f"{groups} groups") if groups else (NO_BOXES, "no box")
            found.add(kind, detail, image)
