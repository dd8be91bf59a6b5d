"""Brings registered data sets, COCO files and Detectron2's dicts into the form of a COCO file."""

from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode

from retina_plugin.core.files import refuse_special_file
from retina_plugin.data.checks.coco_file import read_coco
from retina_plugin.data.checks.context import DataSet
from retina_plugin.data.checks.entries import is_box, is_number
from retina_plugin.data.checks.findings import Entry, Findings

_IMAGE = {"id": "image_id", "file_name": "file_name", "width": "width", "height": "height"}


def from_json(json_file: str, image_root: str, found: Findings) -> DataSet:
    """Read the data set of a COCO file and a folder of images. Raises ``CannotCheck`` if the file is not COCO."""
    return DataSet(json_file, read_coco(json_file, found), image_root, json_file)


def from_catalog(name: str, found: Findings) -> DataSet:
    """Read a data set registered with Detectron2. Raises ``CannotCheck`` if its COCO file is not COCO.

    A COCO file is read directly, because Detectron2 would stop at its first problem.
    """
    metadata = MetadataCatalog.get(name)
    # Some data sets name their COCO file only when they are loaded.
    records = [] if _is_coco(metadata) else DatasetCatalog.get(name)
    classes = metadata.get("thing_classes", None)
    if _is_coco(metadata):
        labels = metadata.get("thing_dataset_id_to_contiguous_id", None)
        coco = read_coco(metadata.json_file, found)
        return DataSet(name, coco, metadata.image_root, metadata.json_file, classes, labels)
    return DataSet(name, _as_coco(records, classes))


def _is_coco(metadata: Metadata) -> bool:
    # LVIS has JSON of another form, which Detectron2 turns into dicts as any other set.
    paths = metadata.get("json_file", None), metadata.get("image_root", None)
    return metadata.get("evaluator_type", None) == "coco" and None not in paths


def _as_coco(records: list[dict[str, Any]], classes: Sequence[str] | None) -> dict[str, list[Entry]]:
    """Detectron2's dicts as a COCO file. A field that a dict lacks is missing there, too."""
    images: list[Entry] = []
    annotations: list[Entry] = []
    for record in records:
        image = {name: record[key] for name, key in _IMAGE.items() if key in record}
        if "width" not in image or "height" not in image:
            image.update(_size_of_file(image))
        images.append(image)
        for instance in record.get("annotations", ()):
            annotation: Entry = {"id": len(annotations) + 1, "image_id": image.get("id")}
            annotation["iscrowd"] = instance.get("iscrowd", 0)
            if "category_id" in instance:
                annotation["category_id"] = instance["category_id"]
            if "bbox" in instance:
                annotation["bbox"] = box = _as_xywh(instance["bbox"], instance.get("bbox_mode"))
                if is_box(box, is_number):
                    annotation["area"] = box[2] * box[3]  # as Detectron2's evaluation does
            annotations.append(annotation)
    if classes is None:
        used = [a["category_id"] for a in annotations if isinstance(a.get("category_id"), int)]
        classes = list(map(str, range(max(used, default=-1) + 1)))
    categories = [{"id": label, "name": str(name)} for label, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _as_xywh(box: Any, mode: Any) -> Any:
    if hasattr(box, "tolist"):
        box = box.tolist()
    try:
        return BoxMode.convert(list(box), BoxMode(mode), BoxMode.XYWH_ABS)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return f"{box} with bbox_mode {mode}"  # to be reported as malformed


def _size_of_file(image: Entry) -> dict[str, int]:
    try:  # Detectron2, too, takes the size from the file if a dict has none
        refuse_special_file(image["file_name"])
        height, width = read_image(image["file_name"]).shape[:2]
    except (KeyError, OSError, ValueError):
        return {}
    return {"width": width, "height": height}
