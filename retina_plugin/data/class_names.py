"""What the classes of data sets are called."""

import itertools
import json

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager


def class_names(dataset_name):
    """The classes of a data set in the order of its labels, None where nothing but loading it tells."""
    if dataset_name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    classes, json_file = metadata.get("thing_classes", None), metadata.get("json_file", None)
    if classes is not None or json_file is None or not PathManager.isfile(json_file):
        return classes
    # `register_coco_instances` names no classes: Detectron2 takes all categories of the file when it loads it.
    with PathManager.open(json_file) as file:
        categories = json.load(file).get("categories", [])
    return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]


def common_class_names(dataset_names):
    """The classes that data sets have in common, in the order of their labels; None where none of them tells.

    Raises:
        ValueError: two sets have different classes, or the same in another order.
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


def first_difference(names, others):
    """Where two lists of class names part.

    Returns:
        The first label that they differ in, and what each calls it, in quotes or "nothing"; None if they are equal.
    """
    for label, (ours, theirs) in enumerate(itertools.zip_longest(names, others)):
        if ours != theirs:
            return label, *("nothing" if name is None else f"'{name}'" for name in (ours, theirs))
    return None
