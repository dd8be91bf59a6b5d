"""Training and evaluation with Detectron2's engine."""

from retina_plugin.engine.divergence import DivergenceError
from retina_plugin.engine.setup import load_config, setup_worker
from retina_plugin.engine.trainer import RetinaTrainer, evaluate

__all__ = ["DivergenceError", "RetinaTrainer", "evaluate", "load_config", "setup_worker"]
