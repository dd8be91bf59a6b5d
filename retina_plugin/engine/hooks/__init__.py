"""Hooks that watch a training: validation loss, best checkpoint, early stopping, progress."""

from retina_plugin.engine.hooks.build import with_watching_hooks
from retina_plugin.engine.hooks.watched_metric import TrainingEnded

__all__ = ["TrainingEnded", "with_watching_hooks"]
