"""This plugin beside Detectron2's own RetinaNet and torchvision's, in one process, as ratios; see README.md."""

import retina_plugin  # noqa: F401  makes Detectron2 importable before a benchmark imports it
