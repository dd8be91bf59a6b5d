"""The alternate form of focal loss, FL* (Lin et al. 2017, appendix A, equations 8 and 9)."""

from torch.nn import functional as F

from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import LossOverLevels, alpha_from_config, balance, signed_logits


def sigmoid_focal_star_loss(logits, labels, *, alpha=None, gamma=2.0, beta=1.0):
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

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha outside [0, 1] or not K of them, gamma not above 0 (the value has no limit there), beta
            not finite.
    """
    _check(gamma, beta)
    x_t, is_class = signed_logits(logits, labels)
    return balance(-F.logsigmoid(gamma * x_t + beta) / gamma, is_class, alpha).sum()


class SigmoidFocalStarLoss(LossOverLevels):
    """:func:`sigmoid_focal_star_loss` summed over levels."""

    def __init__(self, *, alpha=None, gamma=2.0, beta=1.0):
        _check(gamma, beta)
        super().__init__(sigmoid_focal_star_loss, alpha=alpha, gamma=gamma, beta=beta)


def _check(gamma, beta):
    if not 0 < gamma < float("inf"):
        raise ValueError(f"FL*: gamma must be a finite number > 0, got {gamma}")
    if not abs(beta) < float("inf"):
        raise ValueError(f"FL*: beta must be a finite number, got {beta}")


@CLASSIFICATION_LOSS_REGISTRY.register()
def focal_star(cfg):
    return SigmoidFocalStarLoss(
        alpha=alpha_from_config(cfg),
        gamma=cfg.MODEL.RETINANET.FOCAL_STAR_GAMMA,
        beta=cfg.MODEL.RETINANET.FOCAL_STAR_BETA,
    )
