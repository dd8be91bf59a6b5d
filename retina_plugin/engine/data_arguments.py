"""The data sets of a command line: COCO files and folders of images, in place of registered names."""

import argparse
import os
from collections.abc import Iterator

from detectron2.config import CfgNode

from retina_plugin.config.coco_files import add_coco_file
from retina_plugin.core.errors import ConfigError
from retina_plugin.data.class_names import class_names
from retina_plugin.model_zoo import get_config_file

NAMES = {"train": "json_train", "test": "json_test"}  # under which the data sets are registered
DEFAULT_CONFIG = "retinanet_R50"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--train-json``, ``--train-images``, ``--test-json`` and ``--test-images`` to a command line."""
    group = parser.add_argument_group(
        "your own images",
        "Data sets in COCO format, in place of registered ones. The number of classes is that of the file, and "
        f"without --config-file, the configuration is {DEFAULT_CONFIG}.",
    )
    for split in NAMES:
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"COCO file to {split} on")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")


def config_file_of(args: argparse.Namespace) -> str:
    """Return the configuration file of a command line, by default :data:`DEFAULT_CONFIG` for COCO files."""
    return args.config_file or (get_config_file(DEFAULT_CONFIG) if _splits(args) else "")


def use_data_arguments(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set data sets and number of classes by the COCO files of a command line, if there are any (in place).

    The data sets are recorded in ``DATASETS.COCO_FILES``. Without ``--test-json``, a training has no test set. Keys of
    the command line are not changed.

    Raises:
        ConfigError: arguments are incomplete, contradict keys, or name what does not exist; a line for each.
    """
    if problems := list(_problems(args)):
        raise ConfigError(problems)
    splits, given = _splits(args), set(args.opts[::2])
    for split in splits:
        add_coco_file(cfg, NAMES[split], getattr(args, f"{split}_json"), getattr(args, f"{split}_images"))
        cfg.DATASETS[split.upper()] = (NAMES[split],)
    if splits == ["train"] and "DATASETS.TEST" not in given:
        cfg.DATASETS.TEST = ()
    used = [NAMES[split] for split in splits if split == "test" or not args.eval_only]
    classes = class_names(used[0]) if used else None
    if classes and "MODEL.RETINANET.NUM_CLASSES" not in given:
        cfg.MODEL.RETINANET.NUM_CLASSES = len(classes)


def _splits(args: argparse.Namespace) -> list[str]:
    # Detectron2's own parser has no such arguments.
    return [split for split in NAMES if getattr(args, f"{split}_json", None)]


def _problems(args: argparse.Namespace) -> Iterator[str]:
    for split in NAMES:
        json_file, images = (getattr(args, f"{split}_{what}", None) for what in ("json", "images"))
        if bool(json_file) != bool(images):
            yield f"--{split}-json FILE and --{split}-images DIR belong together: give both"
            continue
        if not json_file or not images:
            continue
        if not os.path.isfile(json_file):
            yield f"--{split}-json: there is no file {json_file}"
        if not os.path.isdir(images):
            yield f"--{split}-images: there is no folder {images}"
        if f"DATASETS.{split.upper()}" in args.opts[::2]:
            yield f"--{split}-json and DATASETS.{split.upper()} both name data sets: leave one out"
