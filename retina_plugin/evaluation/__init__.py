"""Evaluators for data sets."""

from retina_plugin.evaluation.build import build_evaluator, inference_folder

__all__ = ["build_evaluator", "inference_folder"]
