"""Training and evaluation with Detectron2's engine."""

from retina_plugin.engine.arguments import argument_parser
from retina_plugin.engine.divergence import DivergenceError
from retina_plugin.engine.interruption import EXIT_INTERRUPTED, TrainingInterrupted
from retina_plugin.engine.run_folder import claim_run_folder
from retina_plugin.engine.setup import load_config, setup_worker
from retina_plugin.engine.trainer import RetinaTrainer, evaluate

__all__ = [
    "EXIT_INTERRUPTED",
    "DivergenceError",
    "RetinaTrainer",
    "TrainingInterrupted",
    "argument_parser",
    "claim_run_folder",
    "evaluate",
    "load_config",
    "setup_worker",
]
