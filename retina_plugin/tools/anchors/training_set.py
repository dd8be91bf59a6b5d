"""The configuration and the training images of a command on a data set."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from retina_plugin.config import read_config
from retina_plugin.config.checks import builds_focal_retinanet, check_model_config
from retina_plugin.config.coco_files import add_coco_file, register_coco_files, require_both
from retina_plugin.core.errors import ConfigError
from retina_plugin.data.class_names import common_class_names
from retina_plugin.data.dataset_checks import check_datasets, empty_problems
from retina_plugin.data.loading import explain_loading
from retina_plugin.data.tiles import build_tiled_dataset
from retina_plugin.engine.data_arguments import DEFAULT_CONFIG, NAMES
from retina_plugin.model_zoo import get_config_file


def read_training_config(
    name: str | None = None,
    *,
    json_file: str | Path | None = None,
    image_root: str | Path | None = None,
    config_file: str = "",
    opts: Sequence[Any] = (),
    imports: Iterable[str] = (),
    allow_unsafe_yaml: bool = False,
) -> CfgNode:
    """Read the configuration of a training on a data set, which becomes its ``DATASETS.TRAIN``.

    Args:
        name: a registered data set; None for the COCO file or, without one, for ``DATASETS.TRAIN`` of ``config_file``.
        json_file, image_root: a COCO file and the folder of its images.
        config_file: by default that of a training with ``--train-json``.
        opts, imports, allow_unsafe_yaml: see :func:`retina_plugin.config.read_config`.

    Returns:
        A configuration whose model is a RetinaNet with as many classes as the data set.

    Raises:
        ConfigError: the configuration or the data set cannot be used.
    """
    if json_file or image_root:
        require_both(json_file, image_root)
    if name and json_file:
        raise ConfigError([f"both {name} and --json {json_file} name a data set: leave one out"])
    if not (name or json_file or config_file):
        raise ConfigError(["name a registered data set, or a COCO file with --json FILE --images DIR"])
    cfg = read_config(config_file or get_config_file(DEFAULT_CONFIG), opts, imports, allow_unsafe=allow_unsafe_yaml)
    register_coco_files(cfg)
    if json_file is not None and image_root is not None:
        name = NAMES["train"]
        add_coco_file(cfg, name, json_file, image_root)
    if name:
        cfg.DATASETS.TRAIN = (name,)
    if problems := list(empty_problems(cfg, eval_only=False)):
        raise ConfigError(problems)
    check_datasets(cfg.DATASETS.TRAIN)
    check_model_config(cfg)
    if not builds_focal_retinanet(cfg) and cfg.MODEL.META_ARCHITECTURE != "RetinaNet":
        architecture = cfg.MODEL.META_ARCHITECTURE
        raise ConfigError([f"MODEL.META_ARCHITECTURE is '{architecture}', not a RetinaNet, and has other anchors"])
    return cfg


def read_training_images(cfg: CfgNode) -> list[dict[str, Any]]:
    """Read the dataset dicts that a training takes, and set the number of classes (in place).

    They are those of ``DATASETS.TRAIN``, in tiles with ``INPUT.TILE.SIZE``.

    Raises:
        ConfigError: a set cannot be loaded, or has nothing to train on.
    """
    with explain_loading("DATASETS.TRAIN", cfg.DATASETS.TRAIN):
        if cfg.INPUT.TILE.SIZE:
            images = build_tiled_dataset(cfg)
        else:
            images = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    classes = common_class_names(cfg.DATASETS.TRAIN)  # some sets name them only now
    if classes:
        cfg.MODEL.RETINANET.NUM_CLASSES = len(classes)
    return images


def class_names_of(cfg: CfgNode) -> list[str]:
    """Return the class names of ``DATASETS.TRAIN``, or labels."""
    return common_class_names(cfg.DATASETS.TRAIN) or [str(k) for k in range(cfg.MODEL.RETINANET.NUM_CLASSES)]
