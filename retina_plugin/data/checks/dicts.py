"""Brings Detectron2's dicts into the form of a COCO file, as its mapper and its evaluation read them."""

import copy
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, PolygonMasks
from pycocotools import mask as mask_util

from retina_plugin.core.files import refuse_special_file
from retina_plugin.core.plain import as_python
from retina_plugin.data.checks.annotations import BAD_KEYPOINTS, BAD_MASK
from retina_plugin.data.checks.coco_file import NO_ANNOTATIONS
from retina_plugin.data.checks.entries import is_box, is_finite, is_number, shorten
from retina_plugin.data.checks.findings import Entry, Findings, error_kind
from retina_plugin.data.checks.structure import BAD_FIELD, NO_FIELD

NO_SIZE = error_kind("""image-size-missing: COCO's evaluation on this set stops with a KeyError. Training alone takes
    the size from the file. Add width and height.""")

_IMAGE = {"id": "image_id", "file_name": "file_name", "width": "width", "height": "height"}


def dicts_as_coco(
    records: Sequence[dict[str, Any]], classes: Sequence[str] | None, found: Findings
) -> dict[str, list[Entry]]:
    """Convert dicts; a field that a dict lacks is missing in the result, too.

    Numbers of NumPy and torch become Python's: training and evaluation read them alike. ``found`` gets what no COCO
    file can have.
    """
    images: list[Entry] = []
    annotations: list[Entry] = []
    is_test_set = not any("annotations" in record for record in records)
    for record in records:
        image = {name: as_python(record[key]) for name, key in _IMAGE.items() if key in record}
        if isinstance(image.get("file_name"), os.PathLike):
            image["file_name"] = os.fspath(image["file_name"])
        if "width" not in image or "height" not in image:
            found.add(NO_SIZE, "no width or height", image)
            image.update(_size_of_file(image))
        if not is_test_set and "annotations" not in record:
            found.add(NO_FIELD, "image without annotations", image)
        images.append(image)
        instances = record.get("annotations", ())
        if not isinstance(instances, (list, tuple)):
            found.add(BAD_FIELD, f"annotations of image is {shorten(instances)}", image)
            continue
        for instance in instances:
            annotations.append(_annotation(instance, image, len(annotations) + 1, found))
    if classes is None:
        used = [int(a["category_id"]) for a in annotations if is_finite(a.get("category_id"))]
        classes = list(map(str, range(max(used, default=-1) + 1)))
    categories = [{"id": label, "name": str(name)} for label, name in enumerate(classes)]
    if is_test_set:
        found.add(NO_ANNOTATIONS, "no annotations")
        return {"images": images, "categories": categories}
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(instance: Any, image: Entry, number: int, found: Findings) -> Any:
    if not isinstance(instance, dict):
        return instance  # which check_structure reports
    annotation: Entry = {"id": number, "image_id": image.get("id")}
    annotation["iscrowd"] = as_python(instance.get("iscrowd", 0))
    if "category_id" in instance:
        annotation["category_id"] = as_python(instance["category_id"])
    if "bbox" in instance:
        annotation["bbox"] = box = _as_xywh(instance["bbox"], instance.get("bbox_mode"))
        if is_box(box, is_number):
            annotation["area"] = box[2] * box[3]  # as Detectron2's evaluation does
    if "segmentation" in instance and not _can_convert_mask(instance["segmentation"]):
        found.add(BAD_MASK, f"segmentation is {shorten(instance['segmentation'])}", image, annotation)
    if "keypoints" in instance and not _can_convert_keypoints(instance["keypoints"]):
        found.add(BAD_KEYPOINTS, f"keypoints is {shorten(instance['keypoints'])}", image, annotation)
    return annotation


def _as_xywh(box: Any, mode: Any) -> Any:
    """A box in COCO's format; a text if Detectron2 cannot convert it, to be reported as malformed."""
    try:
        corners = BoxMode.convert(box, mode, BoxMode.XYXY_ABS)  # in the mapper
        plain = as_python(box)
        BoxMode.convert(plain, mode, BoxMode.XYWHA_ABS if len(plain) == 5 else BoxMode.XYWH_ABS)  # in the evaluation
        return list(BoxMode.convert(list(as_python(corners)), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS))
    except Exception as error:  # of many kinds
        return f"{type(box).__name__} {shorten(box)} with bbox_mode {mode}: {type(error).__name__}"


def _can_convert_mask(mask: Any) -> bool:
    """Whether Detectron2's ``convert_to_coco_dict`` can compute the area of a mask and write it."""
    try:
        if isinstance(mask, list):
            PolygonMasks([mask]).area()[0].item()
            return True
        mask_util.area(mask).item()
        return isinstance(mask["counts"], str) or bool(mask["counts"].decode("ascii"))
    except Exception:  # of many kinds
        return False


def _can_convert_keypoints(keypoints: Any) -> bool:
    """Whether Detectron2's ``convert_to_coco_dict`` can take half a pixel from each x and y and count the visible."""
    try:
        numbers = copy.copy(keypoints)
        for i, value in enumerate(numbers):
            if i % 3 != 2:
                numbers[i] = value - 0.5
        sum(visibility > 0 for visibility in numbers[2::3])
        return True
    except Exception:  # of many kinds
        return False


def _size_of_file(image: Entry) -> dict[str, int]:
    try:
        refuse_special_file(image["file_name"])
        height, width = read_image(image["file_name"]).shape[:2]
    except (KeyError, OSError, ValueError):
        return {}
    return {"width": width, "height": height}
