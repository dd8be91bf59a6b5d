"""Checks that the fields of an annotation besides its box can be loaded, trained on and evaluated."""

import itertools
from typing import Any

from pycocotools import mask as mask_util

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.dropped import has_no_polygon
from retina_plugin.data.checks.entries import as_id, as_numbers, is_finite, is_number, shorten
from retina_plugin.data.checks.findings import Finding, Kind, error_kind, warning_kind
from retina_plugin.data.checks.repair import STRINGS_CONVERTED, Editor, repairs

NO_CROWD = error_kind("""iscrowd-missing: COCO's evaluation on this set stops with a KeyError, after the training.
    Training alone does not read it. Add iscrowd: 0. --fix does.""")


@repairs(NO_CROWD)
def _add_crowd(editor: Editor, finding: Finding) -> str:
    finding.entry["iscrowd"] = 0
    return "iscrowd: 0 added"


BAD_CROWD = error_kind("""iscrowd-invalid: Every value but 0 is a group for Detectron2: training drops the box. Write 0,
    or 1 for a group of objects. --fix does for strings of 0 and 1.""")


@repairs(BAD_CROWD)
def _convert_crowd(editor: Editor, finding: Finding) -> str | None:
    value = as_id(finding.entry["iscrowd"])
    if value not in (0, 1):
        return None
    finding.entry["iscrowd"] = value
    return "written as 0 or 1"


IGNORE = error_kind("""annotation-ignore: Loading stops with an AssertionError: Detectron2 does not support ignore. Use
    iscrowd: 1, which is not trained on either, or remove the annotation. --fix turns 1 and true into iscrowd, and
    writes strings of 0 and empty values as 0.""")


@repairs(IGNORE)
def _turn_ignore_into_crowd(editor: Editor, finding: Finding) -> str | None:
    ignore = as_id(finding.entry["ignore"])
    if not ignore:
        finding.entry["ignore"] = 0
        return "ignore written as 0"
    if ignore != 1:
        return None
    finding.entry.update(ignore=0, iscrowd=1)
    return "ignore turned into iscrowd"


NO_AREA = error_kind("""area-missing: COCO's evaluation on this set stops with a KeyError, after the training. Training
    alone does not read it. Add the area of the object, or width times height. --fix writes the latter.""")
BAD_AREA = error_kind("""area-invalid: COCO's evaluation tells small, medium and large objects by it: it stops, or
    leaves the object out of all three. Write a positive number of pixels. --fix converts strings of numbers, and writes
    width times height otherwise.""")
OTHER_AREA = warning_kind("""area-inconsistent: The box cannot have this area: AP of small, medium and large objects
    counts the object as one of another size. Write the object's area in pixels. --fix writes width times height.""")


@repairs(NO_AREA, BAD_AREA, OTHER_AREA)
def _write_area(editor: Editor, finding: Finding) -> str:
    area = finding.entry.get("area")
    if isinstance(area, str) and is_finite(as_numbers(area)):
        finding.entry["area"] = as_numbers(area)
        return STRINGS_CONVERTED
    _, _, width, height = finding.entry["bbox"]
    finding.entry["area"] = width * height
    return "width times height written"


BAD_MASK = error_kind("""segmentation-malformed: Loading stops or, with dicts, COCO's evaluation, although RetinaNet
    reads no masks. A segmentation is a list of polygons [[x0, y0, x1, y1, ...]], or RLE with counts and size. --fix
    wraps a polygon into a list, converts strings of numbers in RLE, and removes the rest.""")
NO_MASK = error_kind("""segmentation-degenerate: No polygon has three points: Detectron2 drops the annotation when it
    loads the set, with its box, and learns the object as background. Remove the segmentation. --fix does, and keeps the
    box.""")


@repairs(BAD_MASK, NO_MASK)
def _correct_or_remove_mask(editor: Editor, finding: Finding) -> str:
    mask = as_numbers(finding.entry["segmentation"])
    if isinstance(mask, list) and len(mask) >= 6 and len(mask) % 2 == 0 and all(map(is_number, mask)):
        finding.entry["segmentation"] = [mask]
        return "polygon wrapped into a list"
    if isinstance(mask, dict) and isinstance(mask.get("counts"), list):
        mask = {**mask, "counts": as_numbers(mask["counts"]), "size": as_numbers(mask.get("size"))}
    if _mask_problem(mask) is None:
        finding.entry["segmentation"] = mask
        return STRINGS_CONVERTED
    del finding.entry["segmentation"]
    return "segmentation removed"


BAD_KEYPOINTS = error_kind("""keypoints-malformed: Loading stops or, with dicts, COCO's evaluation, although RetinaNet
    reads no keypoints. Keypoints are one list of numbers [x, y, visibility, x, ...]. --fix joins lists of three,
    converts strings of numbers, and removes the rest.""")


@repairs(BAD_KEYPOINTS)
def _correct_or_remove_keypoints(editor: Editor, finding: Finding) -> str:
    keypoints = as_numbers(finding.entry["keypoints"])
    if isinstance(keypoints, list) and all(isinstance(point, list) and len(point) == 3 for point in keypoints):
        keypoints = list(itertools.chain.from_iterable(keypoints))
    if isinstance(keypoints, list) and len(keypoints) % 3 == 0 and all(map(is_number, keypoints)):
        finding.entry["keypoints"] = keypoints
        return "written as one list of numbers"
    del finding.entry["keypoints"]
    finding.entry.pop("num_keypoints", None)
    return "keypoints removed"


@check
def check_fields(context: Context) -> None:
    """Find values of iscrowd, ignore, segmentation and keypoints that Detectron2 does not read as meant."""
    found, image_of = context.found, context.entries.image_of
    for annotation in context.entries.annotations:
        image, crowd = image_of[annotation["image_id"]], annotation.get("iscrowd", 0)
        if "iscrowd" not in annotation:
            found.add(NO_CROWD, "no iscrowd", image, annotation)
        elif not isinstance(crowd, (int, float)) or crowd not in (0, 1):
            found.add(BAD_CROWD, f"iscrowd is {crowd!r}", image, annotation)
        if annotation.get("ignore", 0) != 0:
            found.add(IGNORE, f"ignore is {annotation['ignore']!r}", image, annotation)
        problem = _mask_problem(annotation["segmentation"]) if annotation.get("segmentation") else None
        if problem:
            found.add(*problem, image, annotation)
        if not _can_load_keypoints(annotation.get("keypoints")):
            found.add(BAD_KEYPOINTS, f"keypoints is {shorten(annotation['keypoints'])}", image, annotation)


_MAX_AREA = 1.05  # of a box that is a pixel larger on each side
_MIN_AREA = 0.01  # of the box, where no segmentation explains a smaller one


@check
def check_areas(context: Context) -> None:
    """Find areas that are missing or that the box cannot have."""
    found = context.found
    for annotation, image in zip(context.table.annotations, context.table.images):
        _, _, width, height = annotation["bbox"]
        area: Any = annotation.get("area")
        if "area" not in annotation:
            found.add(NO_AREA, "no area", image, annotation)
        elif not is_finite(area) or area <= 0:
            found.add(BAD_AREA, f"area is {area!r}", image, annotation)
        elif area > _MAX_AREA * (width + 1) * (height + 1) or (
            area < _MIN_AREA * width * height and not annotation.get("segmentation")
        ):
            found.add(OTHER_AREA, f"area {area!r} of a box of {width:g} x {height:g}", image, annotation)


def _mask_problem(mask: Any) -> tuple[Kind, str] | None:
    """What Detectron2's ``load_coco_json`` stops at in a segmentation, or drops the annotation for."""
    shown = f"segmentation is {shorten(mask)}"
    if isinstance(mask, dict):
        if "counts" not in mask:
            return BAD_MASK, "RLE without counts"
        if isinstance(mask["counts"], list):
            try:
                mask_util.frPyObjects(mask, *mask["size"])
            except Exception as error:  # of many kinds
                return BAD_MASK, f"RLE that pycocotools cannot read: {type(error).__name__}"
        return None
    if not isinstance(mask, (list, str)):
        return BAD_MASK, shown
    if not all(hasattr(polygon, "__len__") for polygon in mask):
        return BAD_MASK, f"{shown}, not a list of polygons"
    if has_no_polygon(mask):
        return NO_MASK, shown
    return None


def _can_load_keypoints(keypoints: Any) -> bool:
    """Whether Detectron2's ``load_coco_json`` can add half a pixel to each x and y."""
    if not keypoints or not isinstance(keypoints, list):
        return not keypoints
    return all(isinstance(value, (int, float)) or i % 3 == 2 for i, value in enumerate(keypoints))
