"""Hinge loss on p_t, which the paper tried and gave up (Lin et al. 2017, end of section 5.1)."""

from retina_plugin.losses.multi_level import MultiLevelLoss, PointwiseLoss, sum_over_levels
from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import alpha_from_config


def pointwise_hinge(x_t, margin):
    """Hinge loss of each element of x_t, without alpha."""
    return (margin - x_t.sigmoid()).clamp(min=0)


def sigmoid_hinge_loss(logits, labels, *, alpha=None, margin=0.5):
    r"""Sum of the hinge loss on p_t over anchors and classes: zero above a certain p_t.

    .. math:: H(p_t) = \alpha_t \max(0, m - p_t)

    The paper says no more about it than that it "sets loss to 0 above a certain value of p_t". Its gradient,
    -alpha_t y p_t (1 - p_t) below the margin, vanishes for examples that are badly wrong.

    Args:
        logits: float tensor (..., K), K classes. Half precision is computed in float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored (adds exactly nothing to
            the value and to the gradient).
        alpha: weight of the positive class, in [0, 1], one number or one for each class; negatives weigh
            1 - alpha. None: no weighting.
        margin: m, in (0, 1].

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha outside [0, 1] or not K of them, margin outside (0, 1].
    """
    return sum_over_levels(_hinge(margin), [logits], [labels], alpha=alpha, fused=False)


class SigmoidHingeLoss(MultiLevelLoss):
    """:func:`sigmoid_hinge_loss` summed over levels."""

    def __init__(self, *, alpha=None, margin=0.5):
        super().__init__(_hinge(margin), alpha=alpha, fused=False)


def _hinge(margin):
    if not 0 < margin <= 1:
        raise ValueError(f"hinge loss: the margin on p_t lies in (0, 1], got {margin}")
    return PointwiseLoss(pointwise_hinge, {"margin": margin})


@CLASSIFICATION_LOSS_REGISTRY.register()
def hinge(cfg):
    return SigmoidHingeLoss(alpha=alpha_from_config(cfg), margin=cfg.MODEL.RETINANET.HINGE_MARGIN)
