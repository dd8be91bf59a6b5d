"""Checks of what configuration keys alone tell, before anything is built.

Each check yields one line per problem: the key, its value, and what to do. What a single part can check by itself (a
range, the name of a mode) is checked where that part is built.
"""

import functools
import logging

from detectron2.config import CfgNode

from retina_plugin.config.checks import values
from retina_plugin.config.checks.model import builds_focal_retinanet, model_problems, name_problems, rcnn_key_problems
from retina_plugin.config.checks.monitoring import monitoring_problems
from retina_plugin.config.checks.output_dir import output_dir_problems
from retina_plugin.config.checks.rules import require_values, value_problems
from retina_plugin.config.checks.tiles import tile_problems
from retina_plugin.config.checks.training import precision_problems, process_problems, step_problems
from retina_plugin.config.defaults import require_retina_config
from retina_plugin.core.errors import ConfigError

__all__ = [
    "builds_focal_retinanet",
    "check_model_config",
    "model_problems",
    "monitoring_problems",
    "name_problems",
    "output_dir_problems",
    "precision_problems",
    "process_problems",
    "rcnn_key_problems",
    "require_values",
    "step_problems",
    "tile_problems",
    "value_problems",
    "values",
]


def check_model_config(cfg: CfgNode) -> None:
    """Check the keys that ``FocalRetinaNet`` is built from.

    Keys of R-CNN are a warning here: scripts for inference, such as Detectron2's ``demo.py``, set the thresholds of all
    its models. A training refuses them (:func:`rcnn_key_problems`), because they may be a slip.

    Raises:
        ConfigError: with one line for each problem.
    """
    require_retina_config(cfg)
    require_values(cfg)
    if problems := [*name_problems(cfg), *value_problems(cfg, values.MODEL), *model_problems(cfg)]:
        raise ConfigError(problems)
    for problem in rcnn_key_problems(cfg):
        _warn_once(problem)


@functools.cache  # a process may build several models of one configuration
def _warn_once(problem: str) -> None:
    logging.getLogger(__name__).warning("%s", problem)
