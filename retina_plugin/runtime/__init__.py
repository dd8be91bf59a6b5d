"""Detects objects in images, folders and videos: one interface over every form that a detector is stored in.

Inputs, results and drawing need NumPy and Pillow (videos: OpenCV), neither torch nor Detectron2; a backend is imported
when a detector is opened.
"""

from retina_plugin.runtime.detections import Detections
from retina_plugin.runtime.predictor import Predictor

__all__ = ["Detections", "Predictor"]
