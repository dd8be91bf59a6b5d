"""Focal loss on sigmoid outputs (Lin et al. 2017, section 3.2, equation 5)."""

import torch
from torch import nn
from torch.nn import functional as F

from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY


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
        alpha: weight of the positive class, in [0, 1]; negatives weigh 1 - alpha. None: no weighting.
        gamma: focusing parameter, >= 0; 0 is the (alpha-balanced) cross entropy.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).
    """
    counted = labels >= 0
    logits, labels = logits[counted], labels[counted]  # (V, K), (V,)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    is_class = labels[:, None] == torch.arange(logits.shape[-1], device=labels.device)  # (V, K)
    x_t = torch.where(is_class, logits, -logits)
    loss = -F.logsigmoid(x_t) * torch.exp(gamma * F.logsigmoid(-x_t))
    if alpha is not None:
        loss = torch.where(is_class, alpha * loss, (1 - alpha) * loss)
    return loss.sum()


class SigmoidFocalLoss(nn.Module):
    """:func:`sigmoid_focal_loss` summed over levels; see :mod:`retina_plugin.losses.registry`.

    Raises:
        ValueError: alpha outside [0, 1] or gamma below 0.
    """

    def __init__(self, *, alpha=0.25, gamma=2.0):
        super().__init__()
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"focal loss: alpha weighs the positive class and lies in [0, 1], got {alpha}")
        if not gamma >= 0:
            raise ValueError(f"focal loss: gamma must be >= 0, got {gamma}")
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, logits, labels):
        return sum(sigmoid_focal_loss(x, y, alpha=self.alpha, gamma=self.gamma) for x, y in zip(logits, labels))

    def extra_repr(self):
        return f"alpha={self.alpha}, gamma={self.gamma}"


@CLASSIFICATION_LOSS_REGISTRY.register()
def focal(cfg):
    alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
    return SigmoidFocalLoss(
        alpha=None if alpha < 0 else alpha,  # a negative alpha means no weighting, as upstream
        gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
    )
