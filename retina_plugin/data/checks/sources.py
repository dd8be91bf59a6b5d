"""Brings registered data sets and COCO files into the form of a COCO file."""

from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from retina_plugin.data.checks.coco_file import read_coco
from retina_plugin.data.checks.context import DataSet
from retina_plugin.data.checks.dicts import dicts_as_coco
from retina_plugin.data.checks.findings import CannotCheck, Findings, error_kind

NO_LIST = error_kind("""dicts-no-list: Detectron2 takes a list of dicts, one for each image: it stops when it asks for
    their number, or in its mapper. Return such a list.""")


def from_json(json_file: str, image_root: str, found: Findings) -> DataSet:
    """Read the data set of a COCO file and a folder of images. Raises ``CannotCheck`` if the file is not COCO."""
    return DataSet(json_file, read_coco(json_file, found), image_root, json_file)


def from_catalog(name: str, found: Findings) -> DataSet:
    """Read a data set registered with Detectron2. Raises ``CannotCheck`` if its COCO file is not COCO.

    A COCO file is read directly, because Detectron2 would stop at its first problem.
    """
    records: Any = None if _is_coco(MetadataCatalog.get(name)) else DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)  # some data sets name their COCO file or their classes only when loaded
    classes = metadata.get("thing_classes", None)
    if _is_coco(metadata):
        labels = metadata.get("thing_dataset_id_to_contiguous_id", None)
        coco = read_coco(metadata.json_file, found)
        return DataSet(name, coco, metadata.image_root, metadata.json_file, classes, labels)
    if not hasattr(records, "__len__"):
        raise CannotCheck(NO_LIST, f"the function of {name} returns {type(records).__name__}")
    records = list(records)
    others = [type(record).__name__ for record in records if not isinstance(record, dict)]
    if others:
        raise CannotCheck(NO_LIST, f"an item of {name} is {others[0]}")
    return DataSet(name, dicts_as_coco(records, classes, found))


def _is_coco(metadata: Metadata) -> bool:
    # LVIS has JSON of another form, which Detectron2 turns into dicts as any other set.
    paths = metadata.get("json_file", None), metadata.get("image_root", None)
    return metadata.get("evaluator_type", None) == "coco" and None not in paths
