"""Hooks: validation loss, best checkpoint, early stopping, progress."""

from retina_plugin.engine.hooks.build import build_monitoring_hooks
from retina_plugin.engine.hooks.early_stopping import TrainingEnded

__all__ = ["TrainingEnded", "build_monitoring_hooks"]
