"""Focal loss on sigmoid outputs (Lin et al. 2017, section 3.2, equation 5)."""

import torch
from torch.nn import functional as F

from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import LossOverLevels, alpha_from_config, balance, check_gamma, signed_logits


def sigmoid_focal_loss(logits, labels, *, alpha=0.25, gamma=2.0):
    r"""Sum of the alpha-balanced focal loss over anchors and classes.

    .. math:: FL(p_t) = -\alpha_t (1 - p_t)^\gamma \log(p_t)

    With x_t = x for the anchor's own class and -x for the K-1 others, p_t = sigmoid(x_t) and
    1 - p_t = sigmoid(-x_t). Both factors are computed from log-sigmoids, so that value and gradient are
    finite for every finite logit and every gamma >= 0.

    Args:
        logits: float tensor (..., K), K classes. Half precision is computed in float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored (adds exactly nothing to
            the value and to the gradient).
        alpha: weight of the positive class, in [0, 1], one number or one for each class; negatives weigh
            1 - alpha. None: no weighting.
        gamma: focusing parameter, >= 0; 0 is the (alpha-balanced) cross entropy.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha outside [0, 1] or not K of them, gamma below 0 or not finite.
    """
    check_gamma(gamma)
    x_t, is_class = signed_logits(logits, labels)
    loss = -F.logsigmoid(x_t) * torch.exp(gamma * F.logsigmoid(-x_t))
    return balance(loss, is_class, alpha).sum()


class SigmoidFocalLoss(LossOverLevels):
    """:func:`sigmoid_focal_loss` summed over levels."""

    def __init__(self, *, alpha=0.25, gamma=2.0):
        check_gamma(gamma)
        super().__init__(sigmoid_focal_loss, alpha=alpha, gamma=gamma)


@CLASSIFICATION_LOSS_REGISTRY.register()
def focal(cfg):
    return SigmoidFocalLoss(alpha=alpha_from_config(cfg), gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)
