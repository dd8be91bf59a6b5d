"""Cross entropy on sigmoid outputs, plain and alpha-balanced (Lin et al. 2017, section 3.1, equation 3)."""

from torch.nn import functional as F

from retina_plugin.losses.fused import SigmoidLossFamily
from retina_plugin.losses.multi_level import MultiLevelLoss, PointwiseLoss, sum_over_levels
from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import alpha_from_config


def pointwise_cross_entropy(x_t):
    """CE of each element of x_t, without alpha (equation 1)."""
    return -F.logsigmoid(x_t)


def sigmoid_cross_entropy_loss(logits, labels, *, alpha=None, fused=True):
    r"""Sum of the cross entropy over anchors and classes.

    .. math:: CE(p_t) = -\alpha_t \log(p_t)

    Args:
        logits: float tensor (..., K), K classes. Half precision is computed in float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored (adds exactly nothing to
            the value and to the gradient).
        alpha: weight of the positive class, in [0, 1], one number or one for each class; negatives weigh
            1 - alpha. None: no weighting, the plain cross entropy.
        fused: one pass over the logits for value and gradient (:mod:`retina_plugin.losses.fused`), where the
            device has a kernel. False: the formula as it stands here, and autograd.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha outside [0, 1] or not K of them.
    """
    return sum_over_levels(_CROSS_ENTROPY, [logits], [labels], alpha=alpha, fused=fused)


class SigmoidCrossEntropyLoss(MultiLevelLoss):
    """:func:`sigmoid_cross_entropy_loss` summed over levels."""

    def __init__(self, *, alpha=None, fused=True):
        super().__init__(_CROSS_ENTROPY, alpha=alpha, fused=fused)


_CROSS_ENTROPY = PointwiseLoss(pointwise_cross_entropy, curve=SigmoidLossFamily())


@CLASSIFICATION_LOSS_REGISTRY.register()
def cross_entropy(cfg):
    return SigmoidCrossEntropyLoss(alpha=alpha_from_config(cfg), fused=cfg.MODEL.RETINANET.FUSED_LOSS)
