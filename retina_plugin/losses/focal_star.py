"""The alternate form of focal loss, FL* (Lin et al. 2017, appendix A, equations 8 and 9)."""

from torch.nn import functional as F

from retina_plugin.losses.fused import SigmoidLossFamily
from retina_plugin.losses.multi_level import MultiLevelLoss, PointwiseLoss, sum_over_levels
from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import alpha_from_config


def pointwise_focal_star(x_t, gamma, beta):
    """FL* of each element of x_t, without alpha (equations 8 and 9)."""
    return -F.logsigmoid(gamma * x_t + beta) / gamma


def sigmoid_focal_star_loss(logits, labels, *, alpha=None, gamma=2.0, beta=1.0, fused=True):
    r"""Sum of FL* over anchors and classes: the cross entropy of a steeper, shifted sigmoid.

    .. math:: FL^*(p_t) = -\alpha_t \log(p^*_t) / \gamma, \quad p^*_t = \sigma(\gamma x_t + \beta)

    Its gradient is alpha_t y (p*_t - 1). As focal loss, it falls off for examples that are classified well (x_t > 0).

    Args:
        logits: float tensor (..., K), K classes. Half precision is computed in float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored (adds exactly nothing to
            the value and to the gradient).
        alpha: weight of the positive class, in [0, 1], one number or one for each class; negatives weigh
            1 - alpha. None: no weighting.
        gamma: steepness, > 0.
        beta: shift.
        fused: one pass over the logits for value and gradient (:mod:`retina_plugin.losses.fused`), where the
            device has a kernel. False: the formula as it stands here, and autograd.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha outside [0, 1] or not K of them, gamma not above 0 (the value has no limit there), beta
            not finite.
    """
    return sum_over_levels(_focal_star(gamma, beta), [logits], [labels], alpha=alpha, fused=fused)


class SigmoidFocalStarLoss(MultiLevelLoss):
    """:func:`sigmoid_focal_star_loss` summed over levels."""

    def __init__(self, *, alpha=None, gamma=2.0, beta=1.0, fused=True):
        super().__init__(_focal_star(gamma, beta), alpha=alpha, fused=fused)


def _focal_star(gamma, beta):
    if not 0 < gamma < float("inf"):
        raise ValueError(f"FL*: gamma must be a finite number > 0, got {gamma}")
    if not abs(beta) < float("inf"):
        raise ValueError(f"FL*: beta must be a finite number, got {beta}")
    curve = SigmoidLossFamily(steepness=gamma, shift=beta)
    return PointwiseLoss(pointwise_focal_star, {"gamma": gamma, "beta": beta}, curve)


@CLASSIFICATION_LOSS_REGISTRY.register()
def focal_star(cfg):
    return SigmoidFocalStarLoss(
        alpha=alpha_from_config(cfg),
        gamma=cfg.MODEL.RETINANET.FOCAL_STAR_GAMMA,
        beta=cfg.MODEL.RETINANET.FOCAL_STAR_BETA,
        fused=cfg.MODEL.RETINANET.FUSED_LOSS,
    )
