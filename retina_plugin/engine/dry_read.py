"""Makes training examples of a few images before a training, so that what is wrong with all of them is told at once."""

from typing import Any

from detectron2.config import CfgNode

from retina_plugin.config.checks import builds_focal_retinanet
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import refuse_special_file
from retina_plugin.core.rng import seeded
from retina_plugin.core.text import describe_error
from retina_plugin.data.reading import UNREADABLE, file_name_of
from retina_plugin.data.tiles import build_train_mapper
from retina_plugin.data.training_boxes import build_mapper_quietly
from retina_plugin.modeling.ground_truth import check_ground_truth


def dry_read(cfg: CfgNode, images: Any) -> None:
    """Make training examples of the first, the middle and the last image. Random states stay as they are.

    Images that cannot be read are left to the training, which replaces them.

    Args:
        cfg: the configuration, for Detectron2's ``DatasetMapper`` or that of tiles.
        images: dataset dicts by index.

    Raises:
        ConfigError: an example cannot be made, or the model cannot take it.
    """
    mapper = build_train_mapper(cfg, build_mapper_quietly(cfg))
    for index in sorted({0, len(images) // 2, len(images) - 1}):
        record = images[index]
        name = file_name_of(record)
        try:
            refuse_special_file(name)
            with seeded(0):
                example = mapper(record)
        except UNREADABLE:
            continue
        except Exception as error:
            raise ConfigError([
                f"the annotations of {name or f'image {index}'}, of DATASETS.TRAIN, cannot be used: "
                f"{describe_error(error)}. `python -m retina_plugin check-data NAME` says what is wrong in the set"
            ]) from error  # fmt: skip
        if builds_focal_retinanet(cfg):
            _check_example(cfg, example)


def _check_example(cfg: CfgNode, example: dict[str, Any]) -> None:
    try:
        check_ground_truth([example], cfg.MODEL.RETINANET.NUM_CLASSES)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    channels, means = example["image"].shape[0], len(cfg.MODEL.PIXEL_MEAN)
    if channels not in (1, means):  # one channel is repeated for all means
        raise ConfigError([
            f"INPUT.FORMAT '{cfg.INPUT.FORMAT}' gives images of {channels} channels, but MODEL.PIXEL_MEAN and "
            f"MODEL.PIXEL_STD have {means} numbers: give one for each channel"
        ])  # fmt: skip
