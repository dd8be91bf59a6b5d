"""The losses of the paper (section 3). Nothing in this package knows Detectron2."""

from retina_plugin.losses.focal import SigmoidFocalLoss, sigmoid_focal_loss
from retina_plugin.losses.normalizer import LossNormalizer
from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY, build_classification_loss

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "LossNormalizer",
    "SigmoidFocalLoss",
    "build_classification_loss",
    "sigmoid_focal_loss",
]
