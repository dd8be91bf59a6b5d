"""Checks of the configured data sets: whether they are registered, are on this machine and have the model's classes."""

import os
from collections.abc import Iterable, Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from retina_plugin.config.checks.model import builds_focal_retinanet
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean
from retina_plugin.data.class_names import class_difference_problems, class_names, first_difference
from retina_plugin.data.coco_summary import read_coco_summary


def check_datasets(names: Iterable[str]) -> None:
    """Raise ``ConfigError``, with one line per problem, if data sets are not registered or their files are missing."""
    if problems := list(data_problems(names)):
        raise ConfigError(problems)


def check_class_count(cfg: CfgNode, name: str) -> None:
    """Raise ``ConfigError`` if a loaded data set has another number of classes than the model.

    A data set that is not a COCO file may name its classes only when it is loaded.
    """
    if problems := list(class_count_problems(cfg, [name])):
        raise ConfigError(problems)


def empty_problems(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield a line if the configuration names no data set to train on or, with ``eval_only``, to evaluate."""
    key = "TEST" if eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        yield f"DATASETS.{key} names no data set"


def data_problems(names: Iterable[str]) -> Iterator[str]:
    """Yield a line for each data set that is not registered, whose file or folder is missing, or that is not COCO's."""
    for name in dict.fromkeys(names):
        if name not in DatasetCatalog:
            hint = did_you_mean(name, DatasetCatalog.list())
            yield (
                f"data set '{name}' is not registered.{hint} Register your own with "
                "detectron2.data.datasets.register_coco_instances before training"
            )
            continue
        metadata = MetadataCatalog.get(name)
        for attribute, exists in (("json_file", PathManager.isfile), ("image_root", PathManager.isdir)):
            path = metadata.get(attribute, None)
            if path is not None and not exists(path):
                root = os.environ.get("DETECTRON2_DATASETS", "datasets")
                hint = (
                    f"Detectron2 looks for its built-in sets in $DETECTRON2_DATASETS (now {root}); put it there"
                    if os.path.abspath(path).startswith(os.path.abspath(root) + os.sep)
                    else "Correct the path that it was registered with"
                )
                yield f"data set '{name}' is not on this machine: no {path}. {hint}, or name another set in DATASETS"
                break
        else:
            yield from _coco_problems(name)


def class_problems(cfg: CfgNode, names: Iterable[str]) -> Iterator[str]:
    """Yield a line for each data set that has other classes than the first, or another number than the model."""
    names = list(dict.fromkeys(names))
    yield from class_difference_problems(names)
    first = next((classes for name in names if (classes := class_names(name)) is not None), None)
    agree = (name for name in names if first is not None and not first_difference(first, class_names(name) or ()))
    yield from class_count_problems(cfg, agree)


def class_count_problems(cfg: CfgNode, names: Iterable[str]) -> Iterator[str]:
    """Yield a line for each data set whose number of classes is known and is not the model's."""
    if not builds_focal_retinanet(cfg):
        return
    for name in dict.fromkeys(names):
        classes = class_names(name)
        if classes is not None and len(classes) != cfg.MODEL.RETINANET.NUM_CLASSES:
            yield (
                f"MODEL.RETINANET.NUM_CLASSES is {cfg.MODEL.RETINANET.NUM_CLASSES}, but data set '{name}' has "
                f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}). "
                f"Set it to {len(classes)}"
            )


def _coco_problems(name: str) -> Iterator[str]:
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file", None)
    # With thing_classes, a set may have a file of another form, which its own function reads.
    if json_file is None or metadata.get("thing_classes", None) is not None:
        return
    try:
        read_coco_summary(json_file)
    except OSError as error:
        yield f"data set '{name}': {json_file} cannot be read: {error.strerror or error}"
    except ValueError as error:
        yield f"data set '{name}': {json_file} is not a COCO file: {error}. Correct it, or name another set in DATASETS"
