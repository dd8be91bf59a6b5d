r"""The losses of the paper as functions of logits and labels (section 3 and appendix A).

Each class is a binary problem, without a softmax over classes or a background class: x_t is x for the anchor's own
class and -x for the K-1 others, and p_t = sigmoid(x_t). The functions have in common:

========= ==========================================================================================================
logits    float (..., K); half precision is computed in float32
labels    integer (...): 0..K-1 a class, K background, -1 ignored (adds exactly zero to the value and the gradient)
alpha     weight of positives, in [0, 1], one number or one for each class; negatives weigh 1 - alpha; None: no weights
reduction "sum" over anchors and classes; "mean" over the K classes of the anchors that are not ignored, 0 without any;
          "none": the loss of each anchor and class, by the formula
fused     compute value and gradient in one pass (:mod:`retina_plugin.losses.fused`) where the device has a kernel;
          False, and under ``torch.compile`` and ``torch.func``: the formula and autograd
returns   the SUM as a 0-dim tensor unless ``reduction`` says otherwise; (..., K) for "none"; float32 (float64 for
          float64 logits)
raises    ``TypeError``: labels are not integers, or logits not float;
          ``ValueError``: labels of another shape or, on a CPU, outside -1..K; a parameter out of its range, or another
          number of alphas than K
========= ==========================================================================================================
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retina_plugin.losses.alpha import Alpha, alpha_weights, apply_alpha
from retina_plugin.losses.fused import FusedLoss, SigmoidLossFamily, is_transformed, kernel_for
from retina_plugin.losses.labels import check_label_range, check_labels

REDUCTIONS = ("sum", "mean", "none")  # of fvcore and torchvision
PointwiseLoss = Callable[[Tensor], Tensor]  # x_t -> loss of one anchor and one class, without alpha, elementwise


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
    fused: bool = True,
) -> Tensor:
    """Compute the focal loss, -alpha_t (1 - p_t)^gamma log(p_t) (equation 5).

    Args:
        gamma: focusing parameter, finite and >= 0; 0 gives the cross entropy.
    """
    return _reduce(pointwise_focal(gamma), logits, labels, alpha, reduction, fused)


def sigmoid_cross_entropy_loss(
    logits: Tensor, labels: Tensor, *, alpha: Alpha = None, reduction: str = "sum", fused: bool = True
) -> Tensor:
    """Compute the cross entropy, -alpha_t log(p_t) (equations 1 and 3)."""
    return _reduce(SigmoidLossFamily(), logits, labels, alpha, reduction, fused)


def sigmoid_focal_star_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: Alpha = None,
    gamma: float = 2.0,
    beta: float = 1.0,
    reduction: str = "sum",
    fused: bool = True,
) -> Tensor:
    """Compute FL*, -alpha_t log(p*_t) / gamma with p*_t = sigmoid(gamma x_t + beta) (equations 8 and 9).

    The gradient is alpha_t y (p*_t - 1). Like that of focal loss, it vanishes for well-classified examples (x_t > 0).

    Args:
        gamma: steepness, finite and > 0.
        beta: shift, finite.
    """
    return _reduce(pointwise_focal_star(gamma, beta), logits, labels, alpha, reduction, fused)


def sigmoid_hinge_loss(
    logits: Tensor, labels: Tensor, *, alpha: Alpha = None, margin: float = 0.5, reduction: str = "sum"
) -> Tensor:
    """Compute the hinge loss on p_t, alpha_t max(0, margin - p_t) (end of section 5.1).

    The paper only says that the hinge loss "sets loss to 0 above a certain value of p_t". Below the margin, the
    gradient -alpha_t y p_t (1 - p_t) vanishes for examples that are badly wrong.

    Args:
        margin: in (0, 1].
    """
    return _reduce(PointwiseHinge(margin), logits, labels, alpha, reduction, fused=False)


def pointwise_focal(gamma: float) -> SigmoidLossFamily:
    """Return the focal loss of x_t (equation 4)."""
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"focal loss: gamma must be a finite number >= 0, got {gamma}")
    return SigmoidLossFamily(gamma=gamma)


def pointwise_focal_star(gamma: float, beta: float) -> SigmoidLossFamily:
    """Return FL* of x_t (equations 8 and 9)."""
    if not 0 < gamma < float("inf"):
        raise ValueError(f"FL*: gamma must be a finite number > 0, got {gamma}")
    if not abs(beta) < float("inf"):
        raise ValueError(f"FL*: beta must be a finite number, got {beta}")
    return SigmoidLossFamily(steepness=gamma, shift=beta)


@dataclass(frozen=True)
class PointwiseHinge:
    """Computes the hinge loss of x_t."""

    margin: float

    def __post_init__(self) -> None:
        if not 0 < self.margin <= 1:
            raise ValueError(f"hinge loss: the margin on p_t lies in (0, 1], got {self.margin}")

    def __call__(self, x_t: Tensor) -> Tensor:
        return (self.margin - x_t.sigmoid()).clamp(min=0)


def _reduce(loss: PointwiseLoss, logits: Tensor, labels: Tensor, alpha: Alpha, reduction: str, fused: bool) -> Tensor:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction '{reduction}' is none of {', '.join(REDUCTIONS)}")
    check_labels(logits, labels)
    if not is_transformed([logits]):  # which has no values to look at
        check_label_range(logits, labels)
    if reduction == "none":
        return elementwise_loss(loss, logits, labels, alpha)
    count = (labels >= 0).sum() * logits.shape[-1] if reduction == "mean" else None
    divisor = 1.0 if count is None else count.clamp(min=1)
    return sum_over_levels(loss, [logits], [labels], alpha=alpha, fused=fused, divisor=divisor)


def sum_over_levels(
    loss: PointwiseLoss,
    logits: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    alpha: Alpha,
    fused: bool,
    scores: Sequence[Tensor] | None = None,
    divisor: Tensor | float = 1.0,
    grad_scale: Tensor | None = None,
) -> Tensor:
    """Sum a loss over levels, anchors and classes, and divide the sum.

    Args:
        logits, labels: one tensor a level, checked as :func:`.labels.check_labels` says.
        scores: soft targets of each level; see :func:`weighted_loss`. They are computed without the fused kernels.
        divisor: number or 0-dim tensor, a constant for the gradient.
        grad_scale: see :class:`retina_plugin.losses.fused.FusedLoss`. None: 1.
    """

    for x, y in zip(logits, labels):
        check_labels(x, y)
    transformed = is_transformed(logits)

    def plain(logits: Sequence[Tensor]) -> Tensor:
        if transformed and scores is None:
            first, *rest = [elementwise_loss(loss, x, y, alpha).sum() for x, y in zip(logits, labels)]
        else:
            levels = zip(logits, labels, scores or itertools.repeat(None))
            first, *rest = [weighted_loss(loss, x, y, alpha, s).sum() for x, y, s in levels]
        return sum(rest, start=first)

    kernel = kernel_for(logits) if fused and scores is None else None
    alpha_learns = isinstance(alpha, Tensor) and alpha.requires_grad  # the kernels hold alpha constant
    if transformed or alpha_learns or kernel is None or not isinstance(loss, SigmoidLossFamily):
        return plain(logits) / divisor
    if grad_scale is None:
        grad_scale = logits[0].new_ones((), dtype=torch.float32)
    return FusedLoss(kernel, loss, alpha_weights(alpha, logits[0]), plain)(logits, labels, divisor, grad_scale)


def elementwise_loss(loss: PointwiseLoss, logits: Tensor, labels: Tensor, alpha: Alpha) -> Tensor:
    """Compute the alpha-weighted loss (..., K) of each class of each anchor, exactly 0 for ignored anchors.

    No shape depends on a value, as ``torch.compile`` and ``torch.func.vmap`` need it.
    """
    counted = (labels >= 0)[..., None]
    x_t, is_class = _compute_x_t(torch.where(counted, logits, 0), labels)
    return torch.where(counted, apply_alpha(loss(x_t), is_class, alpha), 0)


def weighted_loss(
    loss: PointwiseLoss, logits: Tensor, labels: Tensor, alpha: Alpha, scores: Tensor | None = None
) -> Tensor:
    """Compute the alpha-weighted loss (V, K) of each class of each of the V anchors that are not ignored.

    Args:
        scores: float (...) in [0, 1], soft targets, read where the label is a class. An anchor's own class with score s
            counts as a positive with weight s and as a negative with weight 1 - s: its loss is
            s alpha f(x) + (1 - s) (1 - alpha) f(-x) for the pointwise loss f. None: 1 everywhere.
    """
    x_t, is_class = compute_x_t(logits, labels)
    weighted = apply_alpha(loss(x_t), is_class, alpha)
    if scores is None:
        return weighted
    positive = is_class.any(dim=1)
    own_class, as_positive = is_class[positive], weighted[positive]
    as_negative = apply_alpha(loss(-x_t[positive]), ~own_class, alpha)
    score = scores[labels >= 0][positive, None].to(weighted.dtype)
    soft = torch.where(own_class, score * as_positive + (1 - score) * as_negative, as_positive)
    return weighted.index_put((positive,), soft)


def compute_x_t(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute x_t (V, K) of the V anchors that are not ignored, and the bool mask (V, K) of each anchor's own class."""
    counted = labels >= 0
    return _compute_x_t(logits[counted], labels[counted])


def _compute_x_t(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    is_class = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    return torch.where(is_class, logits, -logits), is_class
