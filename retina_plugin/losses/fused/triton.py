"""The fused losses on a GPU: a Triton kernel with no atomics and no host synchronization.

Shapes: (O, K, I) as in :mod:`.layout`. Each program writes its partial sum of the loss to its own element, so every run
gives the same result. All arithmetic is float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from retina_plugin.losses.fused.family import SigmoidLossFamily, Weights

PLANE_BLOCK, PLANE_CLASSES, ROW_BLOCK = 1024, 8, 2048


def loss_and_gradient(
    logits: Tensor,
    labels: Tensor,
    family: SigmoidLossFamily,
    weights: Weights,
    scale: Tensor,
    gradient: Tensor | None,
    written_scale: Tensor | None = None,
) -> Tensor | None:
    """Do as :func:`.cpu.loss_and_gradient`, for all but float64 logits; the kernel compares the scales on the GPU."""
    outer, classes, inner = logits.shape
    if logits.numel() == 0:
        return logits.new_zeros((), dtype=torch.float32)
    if inner == 1:
        programs, kernel = triton.cdiv(outer * classes, ROW_BLOCK), _rows
        blocks = {"BLOCK": ROW_BLOCK}
    else:
        blocks = {"BLOCK": min(PLANE_BLOCK, triton.next_power_of_2(inner)), "CLASSES": PLANE_CLASSES}
        programs = outer * triton.cdiv(classes, PLANE_CLASSES) * triton.cdiv(inner, blocks["BLOCK"])
        kernel = _planes
    partial = torch.empty(programs, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        kernel[(programs,)](
            logits,
            labels,
            logits if gradient is None else gradient,
            partial,
            scale,
            scale if written_scale is None else written_scale,
            *weights,
            outer * classes if inner == 1 else inner,
            K=classes,
            GAMMA=float(family.gamma),
            STEEPNESS=float(family.steepness),
            SHIFT=float(family.shift),
            WEIGHT_A_CLASS=isinstance(weights[0], torch.Tensor),
            WRITE=gradient is not None,
            REWRITE=written_scale is not None,
            **blocks,
        )
    return partial.sum(dtype=torch.float64).float() if written_scale is None else None


@triton.jit
def _planes(
    logits,
    labels,
    gradient,
    partial,
    scale,
    written_scale,
    positive_weight,
    negative_weight,
    I,  # noqa: E741
    K: tl.constexpr,
    GAMMA: tl.constexpr,
    STEEPNESS: tl.constexpr,
    SHIFT: tl.constexpr,
    WEIGHT_A_CLASS: tl.constexpr,
    WRITE: tl.constexpr,
    REWRITE: tl.constexpr,
    BLOCK: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Compute planes, I > 1: a program has BLOCK neighbors in I, whose labels it reads once, and CLASSES classes."""
    factor = tl.load(scale)
    if REWRITE and factor == tl.load(written_scale):
        return
    program = tl.program_id(0)
    num_blocks = tl.cdiv(I, BLOCK)
    num_chunks = tl.cdiv(K, CLASSES)
    chunk = program // num_blocks
    o = (chunk // num_chunks).to(tl.int64)
    i = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    y = tl.load(labels + o * I + i, mask=inside, other=-1)
    total = tl.zeros((BLOCK,), tl.float32)
    for c in tl.static_range(CLASSES):
        k = (chunk % num_chunks) * CLASSES + c
        place = (o * K + k) * I + i
        valid = inside & (k < K)
        x = tl.load(logits + place, mask=valid, other=0.0).to(tl.float32)
        positive, negative = _weights(positive_weight, negative_weight, k, k < K, WEIGHT_A_CLASS)
        loss, slope = _loss_and_derivative(x, y, k, positive, negative, GAMMA, STEEPNESS, SHIFT)
        total += tl.where(valid, loss, 0.0)
        if WRITE:
            tl.store(gradient + place, (slope * factor).to(gradient.dtype.element_ty), mask=valid)
    if not REWRITE:
        tl.store(partial + program, tl.sum(total))


@triton.jit
def _rows(
    logits,
    labels,
    gradient,
    partial,
    scale,
    written_scale,
    positive_weight,
    negative_weight,
    count,
    K: tl.constexpr,
    GAMMA: tl.constexpr,
    STEEPNESS: tl.constexpr,
    SHIFT: tl.constexpr,
    WEIGHT_A_CLASS: tl.constexpr,
    WRITE: tl.constexpr,
    REWRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute rows, I = 1: a program has BLOCK neighbors in memory, over all classes of some anchors."""
    factor = tl.load(scale)
    if REWRITE and factor == tl.load(written_scale):
        return
    program = tl.program_id(0)
    first = program.to(tl.int64) * BLOCK
    first_row = first // K
    # From here on 32 bits, as a division of 64 costs more than the loss.
    column = (first - first_row * K).to(tl.int32) + tl.arange(0, BLOCK)
    row, k = column // K, column % K
    valid = first + tl.arange(0, BLOCK) < count
    y = tl.load(labels + first_row + row, mask=valid, other=-1)
    place = first + tl.arange(0, BLOCK)
    x = tl.load(logits + place, mask=valid, other=0.0).to(tl.float32)
    positive, negative = _weights(positive_weight, negative_weight, k, valid, WEIGHT_A_CLASS)
    loss, slope = _loss_and_derivative(x, y, k, positive, negative, GAMMA, STEEPNESS, SHIFT)
    if WRITE:
        tl.store(gradient + place, (slope * factor).to(gradient.dtype.element_ty), mask=valid)
    if not REWRITE:
        tl.store(partial + program, tl.sum(tl.where(valid, loss, 0.0)))


@triton.jit
def _weights(positive, negative, k, valid, WEIGHT_A_CLASS: tl.constexpr):
    if WEIGHT_A_CLASS:
        return tl.load(positive + k, mask=valid, other=0.0), tl.load(negative + k, mask=valid, other=0.0)
    else:
        return positive, negative


@triton.jit
def _loss_and_derivative(
    x, y, k, positive_weight, negative_weight, GAMMA: tl.constexpr, STEEPNESS: tl.constexpr, SHIFT: tl.constexpr
):
    """Compute weighted loss and derivative with respect to x; both are exactly zero where y < 0, for any x."""
    counted, is_class = y >= 0, y == k
    x = tl.where(counted, x, 0.0)
    v = STEEPNESS * tl.where(is_class, -x, x) - SHIFT
    exp = tl.exp(-tl.abs(v))
    larger = 1.0 / (1.0 + exp)
    smaller = exp * larger
    p = tl.where(v > 0, larger, smaller)
    log1p = _log1p(exp)
    softplus = tl.maximum(v, 0.0) + log1p
    loss = softplus / STEEPNESS
    slope = p
    if GAMMA != 0.0:
        # log p does not lose the digits of a small p
        power = p * p if GAMMA == 2.0 else tl.exp(GAMMA * (tl.minimum(v, 0.0) - log1p))
        slope = power * (p + GAMMA * tl.where(v > 0, smaller, larger) * softplus)
        loss *= power
    weight = tl.where(counted, tl.where(is_class, positive_weight, negative_weight), 0.0)
    return loss * weight, slope * tl.where(is_class, -weight, weight)


@triton.jit
def _log1p(x):
    """Compute log(1 + x) for x in [0, 1] with a relative error of 1e-7, also for a small x.

    The result is x times the polynomial that equals log(1 + x) / x in ten Chebyshev points of [0, 1].
    """
    series = -0.00317605701 * x + 0.0195425283
    series = series * x - 0.0563736148
    series = series * x + 0.105436236
    series = series * x - 0.152696669
    series = series * x + 0.196632743
    series = series * x - 0.249516159
    series = series * x + 0.333297104
    series = series * x - 0.499998927
    series = series * x + 1.0
    return x * series
