"""Registers the COCO files that a configuration names, so that whoever reads it finds its data sets without code."""

import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from retina_plugin.core.errors import ConfigError

_TEST_SET = "json_test"  # name of a COCO file on a command line
_registered: dict[str, tuple[str, str]] = {}  # by this module, in this process


def register_coco_files(cfg: CfgNode) -> None:
    """Register the data sets of ``DATASETS.COCO_FILES``, a list of [name, COCO file, folder of its images].

    Another configuration's data set of the same name is replaced.

    Raises:
        ConfigError: an entry has another form, or someone else has registered its name.
    """
    problems = [problem for entry in cfg.DATASETS.COCO_FILES if (problem := _problem(entry))]
    if problems:
        raise ConfigError(problems)
    for name, json_file, image_root in cfg.DATASETS.COCO_FILES:
        if _registered.get(name) == (json_file, image_root):
            continue
        if name in _registered:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, json_file, image_root)
        _registered[name] = (json_file, image_root)


def add_coco_file(cfg: CfgNode, name: str, json_file: str | os.PathLike, image_root: str | os.PathLike) -> None:
    """Add a data set to ``DATASETS.COCO_FILES`` (in place), with absolute paths, and register it.

    Raises:
        ConfigError: see :func:`register_coco_files`.
    """
    others = [entry for entry in cfg.DATASETS.COCO_FILES if entry[0] != name]
    cfg.DATASETS.COCO_FILES = [*others, [name, os.path.abspath(json_file), os.path.abspath(image_root)]]
    register_coco_files(cfg)


def require_both(
    json_file: str | os.PathLike | None, image_root: str | os.PathLike | None
) -> tuple[str | os.PathLike, str | os.PathLike]:
    """Return ``--json`` and ``--images`` of a command line.

    Raises:
        ConfigError: one of the two is missing.
    """
    if not json_file or not image_root:
        raise ConfigError(["--json FILE and --images DIR go together: the COCO file, and the folder of its images"])
    return json_file, image_root


def use_coco_file(
    cfg: CfgNode, json_file: str | os.PathLike | None, image_root: str | os.PathLike | None
) -> str | None:
    """Make the COCO file of a command line's ``--json`` and ``--images`` the only test set (in place).

    Returns:
        The name that it is registered under; None if both arguments are None.

    Raises:
        ConfigError: one of the two is missing, or see :func:`register_coco_files`.
    """
    if json_file is None and image_root is None:
        return None
    json_file, image_root = require_both(json_file, image_root)
    add_coco_file(cfg, _TEST_SET, json_file, image_root)
    cfg.DATASETS.TEST = (_TEST_SET,)
    return _TEST_SET


def _problem(entry: Any) -> str | None:
    is_sequence = isinstance(entry, Sequence) and not isinstance(entry, str)
    if not is_sequence or len(entry) != 3 or not all(isinstance(part, str) and part for part in entry):
        return f"DATASETS.COCO_FILES has {entry}: an entry is [name, COCO file, folder of its images]"
    if entry[0] in DatasetCatalog and entry[0] not in _registered:
        return f"DATASETS.COCO_FILES names '{entry[0]}', which is registered already: choose another name"
    return None
