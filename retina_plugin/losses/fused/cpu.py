"""The fused losses on a CPU: torch's vectorized operators on blocks that fit a cache.

Almost every pair of anchor and class is a negative, for which v = s x - b (:class:`.family.SigmoidLossFamily`). Each
block is computed as if all its entries were negatives. Positives and ignored anchors are set to v = -inf first, where
loss and slope are exactly zero, and the positives are computed separately. Shapes: (O, K, I) as in :mod:`.layout`.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from retina_plugin.losses.fused.family import SigmoidLossFamily, Weights

# Elements. Three float32 buffers take 6 MB. Smaller ones would fit the cache of one core, but the threads synchronize
# after every operator, which takes longer than reading from the shared cache.
BLOCK = 1 << 19


def loss_and_gradient(
    logits: Tensor,
    labels: Tensor,
    family: SigmoidLossFamily,
    weights: Weights,
    scale: Tensor,
    gradient: Tensor | None,
    written_scale: Tensor | None = None,
) -> Tensor | None:
    """Sum the loss, and write ``scale`` times its gradient.

    Args:
        logits: (O, K, I), contiguous.
        labels: integer (O, I): 0..K-1 a class, K background, -1 ignored.
        scale: 0-dim tensor.
        gradient: (O, K, I) like the logits, written; None: the loss alone.
        written_scale: 0-dim tensor, the scale that ``gradient`` was written with; rewritten if ``scale`` differs.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits): the sum without ``scale``; None with a ``written_scale``.
    """
    if written_scale is not None and scale == written_scale:
        return None
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    buffers = torch.empty(3, min(BLOCK, logits.numel()), dtype=dtype)
    factor = scale.item()
    total = 0.0
    for o, k, i in _blocks(*logits.shape):
        total += _block(
            logits[o, k, i],
            labels[o, None, i],
            k.start,
            family,
            [w[k, None] if isinstance(w, Tensor) else w for w in weights],
            factor,
            None if gradient is None else gradient[o, k, i],
            buffers,
        )
    return torch.tensor(total / family.steepness, dtype=dtype) if written_scale is None else None


def _blocks(outer: int, classes: int, inner: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices of the three dimensions, of at most BLOCK elements."""
    i_step = max(min(inner, BLOCK), 1)
    k_step = max(min(classes, BLOCK // i_step), 1)
    o_step = BLOCK // (i_step * k_step)
    for o in range(0, outer, o_step):
        for k in range(0, classes, k_step):
            for i in range(0, inner, i_step):
                yield slice(o, min(o + o_step, outer)), slice(k, min(k + k_step, classes)), slice(i, i + i_step)


def _block(logits, labels, first_class, family, weights, scale, gradient, buffers):
    positive_weight, negative_weight = weights
    v, *rest = (b[: logits.numel()].view(logits.shape) for b in buffers)
    v.copy_(logits)

    positives = None
    if (labels < first_class + v.shape[1]).any():
        positive = (labels >= first_class) & (labels < first_class + v.shape[1])
        o, _, i = positive.nonzero(as_tuple=True)
        positives = o, labels[positive].long() - first_class, i
        minus_x = -v[positives]
        v[positives] = -math.inf
        o, i = (labels[:, 0] < 0).nonzero(as_tuple=True)
        v[o, :, i] = -math.inf

    loss, slope = _loss_and_slope(v, family, rest)
    total = _weigh(loss, slope, negative_weight, scale, gradient)
    if positives is not None:
        loss, slope = _loss_and_slope(minus_x, family, torch.empty(2, len(minus_x), dtype=v.dtype))
        if isinstance(positive_weight, torch.Tensor):
            positive_weight = positive_weight[positives[1], 0]
        total += _weigh(loss, slope.neg_(), positive_weight, scale, slope)
        if gradient is not None:
            gradient[positives] = slope.to(gradient.dtype)
    return total


def _weigh(loss, slope, weight, scale, gradient):
    """Sum the weighted loss, and write the weighted and scaled slope to ``gradient`` unless it is None."""
    if isinstance(weight, torch.Tensor):
        loss.mul_(weight)
        slope.mul_(weight)
        weight = 1.0
    if gradient is not None:
        torch.mul(slope, weight * scale, out=gradient)
    return weight * loss.sum().item()


def _loss_and_slope(v, family, buffers):
    """Return s L and -dL/dx_t of the family for v = -x_t; overwrites v and the buffers."""
    p, softplus = buffers
    if family.steepness != 1:
        v.mul_(family.steepness)
    if family.shift != 0:
        v.sub_(family.shift)
    # Above 80, where exp(v) would soon overflow, softplus(v) is v and p is 1 to the last bit.
    exp = torch.clamp(v, max=80, out=p).exp_()
    torch.log1p(exp, out=softplus)
    torch.maximum(softplus, v, out=softplus)  # log1p rounds to less than v, or the clamp did
    one_minus_p = torch.add(exp, 1, out=v).reciprocal_()
    p = exp.mul_(one_minus_p)
    loss, slope = softplus, p
    if family.gamma != 0:
        slope = torch.add(p, one_minus_p.mul_(softplus), alpha=family.gamma, out=v)
        # torch.pow takes four times as long as exp and log.
        power = p.mul_(p) if family.gamma == 2 else p.log_().mul_(family.gamma).exp_()
        slope.mul_(power)
        loss = softplus.mul_(power)
    return loss, slope
