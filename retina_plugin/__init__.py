"""RetinaNet and focal loss (Lin et al. 2017) as a Detectron2 plugin.

Importing this package registers every component with Detectron2: the backbone builder
``build_p3p7_resnet_fpn_backbone``, the meta-architecture ``FocalRetinaNet`` and the quick-start data sets.
"""

import importlib
from typing import TYPE_CHECKING, Any

# First: makes Detectron2 import on this machine, or says how to get it.
from retina_plugin import detectron2_compat  # noqa: F401  isort: skip

from retina_plugin import data, losses, modeling  # isort: skip
from retina_plugin.config import add_retina_config, get_cfg, merge_config
from retina_plugin.core.errors import CheckpointError, ConfigError, UserError

if TYPE_CHECKING:
    from retina_plugin import checkpoint, config, engine, evaluation, model_zoo, runtime
    from retina_plugin.engine.setup import check_config, load_config
    from retina_plugin.runtime import Detections, Predictor

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Detections",
    "Predictor",
    "UserError",
    "add_retina_config",
    "check_config",
    "checkpoint",
    "config",
    "data",
    "engine",
    "evaluation",
    "get_cfg",
    "load_config",
    "losses",
    "merge_config",
    "model_zoo",
    "modeling",
    "runtime",
]

_LAZY = {
    "Detections": "runtime",
    "Predictor": "runtime",
    "check_config": "engine.setup",
    "load_config": "engine.setup",
}


def __getattr__(name: str) -> Any:
    """Import engine, evaluation, checkpoint, runtime and model zoo when they are first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"retina_plugin.{_LAZY[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"retina_plugin.{name}")
    raise AttributeError(f"module 'retina_plugin' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
