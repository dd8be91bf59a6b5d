"""Classifies images on the plugin's backbone: which classes are in the image, without boxes."""

import retina_plugin  # noqa: F401  isort: skip  first: makes Detectron2 importable

from pyramid_classifier.classifier import PyramidClassifier
from pyramid_classifier.config import add_config

__all__ = ["PyramidClassifier", "add_config"]
