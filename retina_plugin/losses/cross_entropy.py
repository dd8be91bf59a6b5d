"""Cross entropy on sigmoid outputs, plain and alpha-balanced (Lin et al. 2017, section 3.1, equation 3)."""

from torch.nn import functional as F

from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import LossOverLevels, alpha_from_config, balance, signed_logits


def sigmoid_cross_entropy_loss(logits, labels, *, alpha=None):
    r"""Sum of the cross entropy over anchors and classes.

    .. math:: CE(p_t) = -\alpha_t \log(p_t)

    Args:
        logits: float tensor (..., K), K classes. Half precision is computed in float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored (adds exactly nothing to
            the value and to the gradient).
        alpha: weight of the positive class, in [0, 1], one number or one for each class; negatives weigh
            1 - alpha. None: no weighting, the plain cross entropy.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha outside [0, 1] or not K of them.
    """
    x_t, is_class = signed_logits(logits, labels)
    return balance(-F.logsigmoid(x_t), is_class, alpha).sum()


class SigmoidCrossEntropyLoss(LossOverLevels):
    """:func:`sigmoid_cross_entropy_loss` summed over levels."""

    def __init__(self, *, alpha=None):
        super().__init__(sigmoid_cross_entropy_loss, alpha=alpha)


@CLASSIFICATION_LOSS_REGISTRY.register()
def cross_entropy(cfg):
    return SigmoidCrossEntropyLoss(alpha=alpha_from_config(cfg))
