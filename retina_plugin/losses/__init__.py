"""The classification losses of the paper (section 3), independent of Detectron2."""

from retina_plugin.losses.functional import (
    sigmoid_cross_entropy_loss,
    sigmoid_focal_loss,
    sigmoid_focal_star_loss,
    sigmoid_hinge_loss,
)
from retina_plugin.losses.modules import (
    SigmoidCrossEntropyLoss,
    SigmoidFocalLoss,
    SigmoidFocalStarLoss,
    SigmoidHingeLoss,
)
from retina_plugin.losses.normalizer import LossNormalizer, Normalizer
from retina_plugin.losses.ohem import OnlineHardExampleMining
from retina_plugin.losses.registry import (
    CLASSIFICATION_LOSS_REGISTRY,
    ClassificationLoss,
    LossContext,
    build_classification_loss,
    register_classification_loss,
)
from retina_plugin.losses.targets import Targets

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "ClassificationLoss",
    "LossContext",
    "LossNormalizer",
    "Normalizer",
    "OnlineHardExampleMining",
    "SigmoidCrossEntropyLoss",
    "SigmoidFocalLoss",
    "SigmoidFocalStarLoss",
    "SigmoidHingeLoss",
    "Targets",
    "build_classification_loss",
    "register_classification_loss",
    "sigmoid_cross_entropy_loss",
    "sigmoid_focal_loss",
    "sigmoid_focal_star_loss",
    "sigmoid_hinge_loss",
]
