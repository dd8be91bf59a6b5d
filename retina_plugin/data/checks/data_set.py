"""A data set in the one form that all checks read: that of a COCO file."""

import os
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode

from .coco_file import read_coco

_IMAGE = {"id": "image_id", "file_name": "file_name", "width": "width", "height": "height"}
_REQUIRED = ("bbox", "category_id")


@dataclass
class DataSet:
    """
    Attributes:
        name: what reports call it.
        coco: dict of the lists ``images``, ``annotations`` and ``categories``, as in the file.
        image_root: folder that file names are relative to; None for complete ones.
        json_file: that it was read from; None for a data set that is Python.
        classes: names that the registered data set promises, in the order of labels; None if it does not.
        labels: dict of category ids to labels 0..K-1 that it promises; None if it does not.
    """

    name: str
    coco: dict
    image_root: str = None
    json_file: str = None
    classes: list = None
    labels: dict = None
    _listings: dict = field(default_factory=dict, repr=False)

    def path(self, image):
        """Where the file of an image is, as Detectron2 makes it of folder and name."""
        name = image["file_name"]
        return name if self.image_root is None else os.path.join(self.image_root, name)

    def names_in(self, folder):
        """What a folder of this machine holds; nothing if it is not there."""
        if folder not in self._listings:
            try:
                self._listings[folder] = os.listdir(folder or ".")
            except OSError:
                self._listings[folder] = []
        return self._listings[folder]


def from_json(json_file, image_root, found):
    """The data set of a COCO file and a folder; ``CannotCheck`` if there is none in it."""
    return DataSet(json_file, read_coco(json_file, found), image_root, json_file)


def from_catalog(name, found):
    """The data set registered with Detectron2 under a name.

    One that is a COCO file is read from the file: loading it stops at the first problem.

    Raises:
        CannotCheck: its COCO file is none.
    """
    metadata = MetadataCatalog.get(name)
    records = None
    if not _is_coco(metadata):
        records = DatasetCatalog.get(name)  # some tell where their file is only now
    promised = {
        "classes": metadata.get("thing_classes", None),
        "labels": metadata.get("thing_dataset_id_to_contiguous_id", None),
    }
    if _is_coco(metadata):
        coco = read_coco(metadata.json_file, found)
        return DataSet(name, coco, metadata.image_root, metadata.json_file, **promised)
    return DataSet(name, _as_coco(records, promised["classes"]))


def _is_coco(metadata):
    # LVIS has a JSON of another form, which Detectron2 turns into dicts like any other.
    paths = metadata.get("json_file", None), metadata.get("image_root", None)
    return metadata.get("evaluator_type", None) == "coco" and None not in paths


def _as_coco(records, classes):
    """Detectron2's dicts as a COCO file. What they lack, or what is no box in pixels, is missing there as well."""
    images, annotations = [], []
    for record in records:
        image = {name: record[key] for name, key in _IMAGE.items() if key in record}
        if "width" not in image or "height" not in image:
            image.update(_size_of_file(image))
        images.append(image)
        for instance in record.get("annotations", ()):
            annotation = {"id": len(annotations) + 1, "image_id": image.get("id")}
            annotation["iscrowd"] = instance.get("iscrowd", 0)
            annotation.update({key: instance[key] for key in _REQUIRED if key in instance})
            if "bbox" in instance:
                annotation["bbox"] = box = _as_xywh(instance["bbox"], instance.get("bbox_mode"))
                if isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box):
                    annotation["area"] = box[2] * box[3]  # as Detectron2 does when it evaluates
            annotations.append(annotation)
    if classes is None:
        used = {a["category_id"] for a in annotations if isinstance(a.get("category_id"), int)}
        classes = range(max(used, default=-1) + 1)
    categories = [{"id": label, "name": str(name)} for label, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _as_xywh(box, mode):
    if isinstance(box, np.ndarray) or hasattr(box, "tolist"):
        box = box.tolist()
    try:
        return BoxMode.convert(list(box), BoxMode(mode), BoxMode.XYWH_ABS)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return f"{box} with bbox_mode {mode}"  # which is no box


def _size_of_file(image):
    try:  # Detectron2 takes the size of the image itself where a dict has none
        height, width = read_image(image["file_name"]).shape[:2]
    except (KeyError, OSError, ValueError):
        return {}
    return {"width": width, "height": height}
