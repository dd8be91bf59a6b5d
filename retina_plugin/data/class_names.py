"""Finds the class names of data sets, and where two lists differ."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import list_some, one_line
from retina_plugin.data.coco_summary import read_coco_summary

_SHOWN = 10  # names of a list in a message


def class_names(dataset_name: str) -> list[str] | None:
    """Return the class names of a data set in the order of its labels; None if they are known only after loading."""
    if dataset_name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    classes, json_file = metadata.get("thing_classes", None), metadata.get("json_file", None)
    if classes is not None or json_file is None or not PathManager.isfile(json_file):
        return classes
    try:
        # `register_coco_instances` sets no names: Detectron2 takes all categories of the file when it loads the set.
        return read_coco_summary(json_file).class_names
    except (OSError, ValueError):  # data_problems says it
        return None


def common_class_names(dataset_names: Iterable[str]) -> list[str] | None:
    """Return the class names of data sets in the order of their labels; None if no set has known names.

    Raises:
        ConfigError: sets have different names, or the same in another order; see :func:`class_difference_problems`.
    """
    dataset_names = list(dataset_names)
    if problems := list(class_difference_problems(dataset_names)):
        raise ConfigError(problems)
    return next((list(classes) for _, classes in _named(dataset_names)), None)


def class_difference_problems(dataset_names: Iterable[str]) -> Iterator[str]:
    """Yield a line for each data set whose class names, in the order of labels, are not those of the first.

    Ids of categories may differ: training and evaluation translate them to labels, each set by its own.
    """
    named = list(_named(dataset_names))
    for name, others in named[1:]:
        first, classes = named[0]
        difference = first_difference(classes, others)
        if difference is not None:
            label, ours, theirs = difference
            lists = f"'{first}' has {_shown(classes)}; '{name}' has {_shown(others)}"
            yield (
                f"data sets '{first}' and '{name}' have different classes: label {label} is {ours} in one and {theirs} "
                f"in the other. {lists}. {_advice(classes, others)}"
            )


def first_difference(names: Sequence[str], others: Sequence[str]) -> tuple[int, str, str] | None:
    """Find the first label with different names: the label, and both names in quotes or "nothing"; None if equal."""
    for label, (ours, theirs) in enumerate(itertools.zip_longest(names, others)):
        if ours != theirs:
            ours, theirs = ("nothing" if name is None else f"'{one_line(name)}'" for name in (ours, theirs))
            return label, ours, theirs
    return None


def _named(dataset_names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    for name in dict.fromkeys(dataset_names):
        classes = class_names(name)
        if classes is not None:
            yield name, classes


def _shown(classes: Sequence[str]) -> str:
    return f"{len(classes)} ({list_some(classes, _SHOWN)})"


def _advice(classes: Sequence[str], others: Sequence[str]) -> str:
    if sorted(map(str, classes)) == sorted(map(str, others)):
        return (
            "They are the same in another order, which is that of the category ids in a COCO file: give each name the "
            "same place in both"
        )
    if set(classes) < set(others) or set(others) < set(classes):
        return "Give both all of the classes, in the same order: a class may have no annotations"
    return "A model has one list: name sets that agree"
