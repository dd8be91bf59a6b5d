"""Training and evaluation with Detectron2's engine."""

from retina_plugin.engine.arguments import argument_parser
from retina_plugin.engine.divergence import DivergenceError
from retina_plugin.engine.errors import JOB_ERRORS, error_text
from retina_plugin.engine.interruption import EXIT_INTERRUPTED, TrainingInterrupted
from retina_plugin.engine.launch import launch
from retina_plugin.engine.meeting import LaunchError
from retina_plugin.engine.run_folder import claim_run_folder
from retina_plugin.engine.setup import load_config, setup_worker
from retina_plugin.engine.trainer import RetinaTrainer, evaluate

__all__ = [
    "EXIT_INTERRUPTED",
    "JOB_ERRORS",
    "DivergenceError",
    "LaunchError",
    "RetinaTrainer",
    "TrainingInterrupted",
    "argument_parser",
    "claim_run_folder",
    "error_text",
    "evaluate",
    "launch",
    "load_config",
    "setup_worker",
]
