"""Measures which examples the focal loss of a trained detector comes from."""

import retina_plugin  # noqa: F401  first: makes Detectron2 importable
