"""Evaluators for data sets."""

from retina_plugin.evaluation.build import build_evaluator, inference_folder
from retina_plugin.evaluation.coco import BoxEvaluator

__all__ = ["BoxEvaluator", "build_evaluator", "inference_folder"]
