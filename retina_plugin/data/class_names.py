"""Finds the class names of data sets, and where two lists differ."""

import itertools
import json
from collections.abc import Iterable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager


def class_names(dataset_name: str) -> list[str] | None:
    """Return the class names of a data set in the order of its labels; None if they are known only after loading."""
    if dataset_name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    classes, json_file = metadata.get("thing_classes", None), metadata.get("json_file", None)
    if classes is not None or json_file is None or not PathManager.isfile(json_file):
        return classes
    # `register_coco_instances` sets no names: Detectron2 takes all categories of the file when it loads the set.
    with PathManager.open(json_file) as file:
        categories = json.load(file).get("categories", [])
    return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]


def common_class_names(dataset_names: Iterable[str]) -> list[str] | None:
    """Return the class names of data sets in the order of their labels; None if no set has known names.

    Raises:
        ValueError: two sets have different names, or the same in another order.
    """
    named = {name: classes for name in dataset_names if (classes := class_names(name)) is not None}
    if not named:
        return None
    first, classes = next(iter(named.items()))
    for name, others in named.items():
        difference = first_difference(classes, others)
        if difference is not None:
            label, ours, theirs = difference
            raise ValueError(
                f"data sets '{first}' and '{name}' have different classes: label {label} is {ours} in one and {theirs} "
                "in the other. A model has one list: name sets that agree"
            )
    return list(classes)


def first_difference(names: Sequence[str], others: Sequence[str]) -> tuple[int, str, str] | None:
    """Find the first label with different names: the label, and both names in quotes or "nothing"; None if equal."""
    for label, (ours, theirs) in enumerate(itertools.zip_longest(names, others)):
        if ours != theirs:
            ours, theirs = ("nothing" if name is None else f"'{name}'" for name in (ours, theirs))
            return label, ours, theirs
    return None
