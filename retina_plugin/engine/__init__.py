"""Training and evaluation with Detectron2's engine."""

from retina_plugin.engine.arguments import argument_parser
from retina_plugin.engine.launch import launch
from retina_plugin.engine.output_dir import prepare_output_dir
from retina_plugin.engine.setup import load_config, setup_rank
from retina_plugin.engine.signals import EXIT_INTERRUPTED, TrainingInterrupted
from retina_plugin.engine.trainer import RetinaTrainer, evaluate

__all__ = [
    "EXIT_INTERRUPTED",
    "RetinaTrainer",
    "TrainingInterrupted",
    "argument_parser",
    "prepare_output_dir",
    "evaluate",
    "launch",
    "load_config",
    "setup_rank",
]
