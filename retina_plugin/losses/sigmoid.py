"""What every loss on sigmoid outputs shares: x_t, the weight alpha, the sum over levels (section 3).

A class is one binary problem, and an anchor answers K of them; the paper's classifier has no softmax over classes and
no background class, and neither has any loss here.
"""

import numbers

import torch
from torch import nn


def signed_logits(logits, labels):
    """x_t = y x of every counted anchor and class, where y is 1 for the anchor's own class and -1 for the others.

    Args:
        logits: float tensor (..., K). Half precision becomes float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored.

    Returns:
        x_t: (V, K), the V anchors that are not ignored; p_t = sigmoid(x_t).
        is_class: bool (V, K), where y is 1.
    """
    counted = labels >= 0
    logits, labels = logits[counted], labels[counted]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    is_class = labels[:, None] == torch.arange(logits.shape[-1], device=labels.device)
    return torch.where(is_class, logits, -logits), is_class


def balance(loss, is_class, alpha):
    """Multiply by alpha_t: alpha where y is 1, 1 - alpha where it is -1 (section 3.1).

    Args:
        loss: (V, K).
        is_class: bool (V, K), of :func:`signed_logits`.
        alpha: weight of the positive class, in [0, 1]: a number, or K of them (a sequence or a tensor). None: off,
            every weight is 1. It does not change the precision of the loss.

    Raises:
        ValueError: a weight outside [0, 1] (not checked in a tensor), or not K of them.
    """
    if alpha is None:
        return loss
    if not isinstance(alpha, torch.Tensor):
        check_alpha(alpha)
    if not isinstance(alpha, numbers.Real):
        alpha = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
        if alpha.shape not in ((), loss.shape[-1:]):
            raise ValueError(
                f"alpha has shape {tuple(alpha.shape)}: give one number, or one for each of {loss.shape[-1]} classes"
            )
    return torch.where(is_class, alpha * loss, (1 - alpha) * loss)


def check_alpha(alpha):
    """Raise ``ValueError`` unless alpha is None, a number in [0, 1] or a sequence or tensor of such numbers."""
    if alpha is None:
        return
    if isinstance(alpha, numbers.Real):  # at every step: no tensor for it
        weights = [alpha]
    else:
        weights = torch.as_tensor(alpha, dtype=torch.float64, device="cpu").flatten().tolist()
    wrong = [weight for weight in weights if not 0 <= weight <= 1]
    if wrong:
        raise ValueError(
            f"alpha weighs the positive class and lies in [0, 1], got {', '.join(map(str, wrong))} "
            "(off is None, and -1.0 in a configuration)"
        )


def check_gamma(gamma):
    """Raise ``ValueError`` unless focal loss's gamma is a finite number >= 0."""
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"focal loss: gamma must be a finite number >= 0, got {gamma}")


def alpha_from_config(cfg):
    """The weight of the positive class that a configuration asks for.

    ``MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS`` has K numbers, or is empty: then the one number
    ``FOCAL_LOSS_ALPHA`` holds for every class. There, -1.0 is Detectron2's way to say "off", and YAML's null says
    so as well.

    Returns:
        None (off), a number, or a list of K numbers.

    Raises:
        ValueError: another negative number, or not as many as classes.
    """
    per_class, alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS, cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
    if not per_class:
        return None if alpha is None or alpha == -1 else alpha
    if len(per_class) != cfg.MODEL.RETINANET.NUM_CLASSES:
        raise ValueError(
            f"MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS has {len(per_class)} numbers for the "
            f"{cfg.MODEL.RETINANET.NUM_CLASSES} classes of MODEL.RETINANET.NUM_CLASSES; give one a class, in their "
            "order, or none"
        )
    return list(per_class)


class LossOverLevels(nn.Module):
    """Sums a plain loss function over levels; see :mod:`retina_plugin.losses.registry`."""

    def __init__(self, function, *, alpha, **settings):
        """
        Args:
            function: ``f(logits, labels, *, alpha, **settings) -> 0-dim sum``.
            alpha: see :func:`balance`.
            settings: its other parameters.

        Raises:
            ValueError: alpha out of range.
        """
        super().__init__()
        check_alpha(alpha)
        self.function = function
        self.settings = settings
        if alpha is None or isinstance(alpha, numbers.Real):
            self.alpha = alpha
        else:  # a buffer, so that it lies where the logits are
            self.register_buffer("alpha", torch.as_tensor(alpha, dtype=torch.float32), persistent=False)

    def forward(self, logits, labels, decode_boxes):
        return sum(self.function(x, y, alpha=self.alpha, **self.settings) for x, y in zip(logits, labels))

    def extra_repr(self):
        alpha = self.alpha.tolist() if isinstance(self.alpha, torch.Tensor) else self.alpha
        return ", ".join(f"{name}={value}" for name, value in {"alpha": alpha, **self.settings}.items())
