"""The losses of the paper (section 3). Nothing in this package knows Detectron2."""

from retina_plugin.losses.cross_entropy import SigmoidCrossEntropyLoss, sigmoid_cross_entropy_loss
from retina_plugin.losses.focal import SigmoidFocalLoss, sigmoid_focal_loss
from retina_plugin.losses.focal_star import SigmoidFocalStarLoss, sigmoid_focal_star_loss
from retina_plugin.losses.hinge import SigmoidHingeLoss, sigmoid_hinge_loss
from retina_plugin.losses.normalizer import LossNormalizer
from retina_plugin.losses.ohem import OnlineHardExampleMining
from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY, build_classification_loss

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "LossNormalizer",
    "OnlineHardExampleMining",
    "SigmoidCrossEntropyLoss",
    "SigmoidFocalLoss",
    "SigmoidFocalStarLoss",
    "SigmoidHingeLoss",
    "build_classification_loss",
    "sigmoid_cross_entropy_loss",
    "sigmoid_focal_loss",
    "sigmoid_focal_star_loss",
    "sigmoid_hinge_loss",
]
