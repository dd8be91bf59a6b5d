"""Reads what a training or evaluation left in its ``OUTPUT_DIR``: configuration, weights and class names."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from retina_plugin.checkpoint.checkpointer import RetinaCheckpointer
from retina_plugin.config import read_config
from retina_plugin.config.coco_files import register_coco_files
from retina_plugin.data.class_names import class_names


def read_run_config(
    output_dir: str | os.PathLike, opts: Sequence[Any] = (), imports: Iterable[str] = (), *, allow_unsafe: bool = False
) -> CfgNode:
    """Read ``config.yaml`` of a run and register its COCO files; ``OUTPUT_DIR`` is where the folder is now.

    Args:
        output_dir: ``OUTPUT_DIR`` of a training or evaluation.
        opts, imports, allow_unsafe: see :func:`~retina_plugin.config.read_config`.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    cfg = read_config(str(Path(output_dir) / "config.yaml"), opts, imports, allow_unsafe=allow_unsafe)
    register_coco_files(cfg)
    cfg.OUTPUT_DIR = str(output_dir)
    return cfg


def weights_of_run(cfg: CfgNode) -> str:
    """Return the last checkpoint in ``OUTPUT_DIR``, or else ``MODEL.WEIGHTS``; empty if there is neither.

    Raises:
        CheckpointError: ``last_checkpoint`` does not name a file of its folder.
    """
    return RetinaCheckpointer(nn.Identity(), cfg.OUTPUT_DIR).get_checkpoint_file() or cfg.MODEL.WEIGHTS


def class_names_of_model(cfg: CfgNode, checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the names of a model's classes, in the order of its labels.

    Args:
        cfg: of the model.
        checkpoint: what its file of weights has.

    Returns:
        The names in the checkpoint; or those of the first known data set of ``cfg`` with as many classes; or labels.
    """
    if names := checkpoint.get("class_names"):
        return list(names)
    count = cfg.MODEL.RETINANET.NUM_CLASSES
    of_data = (class_names(name) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN))
    found = next((names for names in of_data if names and len(names) == count), None)
    return list(found or map(str, range(count)))
