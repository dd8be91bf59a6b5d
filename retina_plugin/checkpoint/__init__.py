"""Checkpoints: safe reading, strict loading, whole files, fine-tuning by the names of classes."""

from retina_plugin.checkpoint.checkpointer import RetinaCheckpointer
from retina_plugin.checkpoint.reader import read_checkpoint
from retina_plugin.core.errors import CheckpointError

__all__ = ["CheckpointError", "RetinaCheckpointer", "read_checkpoint"]
