"""Focal loss on sigmoid outputs (Lin et al. 2017, section 3.2, equation 5)."""

import torch
from torch.nn import functional as F

from retina_plugin.losses.fused import SigmoidLossFamily
from retina_plugin.losses.multi_level import MultiLevelLoss, PointwiseLoss, sum_over_levels
from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import alpha_from_config


def pointwise_focal(x_t, gamma):
    """FL of each element of x_t, without alpha (equation 4).

    With p_t = sigmoid(x_t), 1 - p_t is sigmoid(-x_t). Both factors are computed from log-sigmoids, so that value and
    gradient are finite for every finite x_t and every gamma >= 0.
    """
    return -F.logsigmoid(x_t) * torch.exp(gamma * F.logsigmoid(-x_t))


def sigmoid_focal_loss(logits, labels, *, alpha=0.25, gamma=2.0, fused=True):
    r"""Sum of the alpha-balanced focal loss over anchors and classes.

    .. math:: FL(p_t) = -\alpha_t (1 - p_t)^\gamma \log(p_t)

    p_t = sigmoid(x_t), with x_t = x for the anchor's own class and -x for the K-1 others.

    Args:
        logits: float tensor (..., K), K classes. Half precision is computed in float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored (adds exactly nothing to
            the value and to the gradient).
        alpha: weight of the positive class, in [0, 1], one number or one for each class; negatives weigh
            1 - alpha. None: no weighting.
        gamma: focusing parameter, >= 0; 0 is the (alpha-balanced) cross entropy.
        fused: one pass over the logits for value and gradient (:mod:`retina_plugin.losses.fused`), where the
            device has a kernel. False: the formula as it stands here, and autograd.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha outside [0, 1] or not K of them, gamma below 0 or not finite.
    """
    return sum_over_levels(_focal(gamma), [logits], [labels], alpha=alpha, fused=fused)


class SigmoidFocalLoss(MultiLevelLoss):
    """:func:`sigmoid_focal_loss` summed over levels."""

    def __init__(self, *, alpha=0.25, gamma=2.0, fused=True):
        super().__init__(_focal(gamma), alpha=alpha, fused=fused)


def _focal(gamma):
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"focal loss: gamma must be a finite number >= 0, got {gamma}")
    return PointwiseLoss(pointwise_focal, {"gamma": gamma}, SigmoidLossFamily(gamma=gamma))


@CLASSIFICATION_LOSS_REGISTRY.register()
def focal(cfg):
    return SigmoidFocalLoss(
        alpha=alpha_from_config(cfg),
        gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
        fused=cfg.MODEL.RETINANET.FUSED_LOSS,
    )
