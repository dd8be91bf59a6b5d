"""Losses and gradients of a batch, computed in parts of few images one after the other.

The result is that of the whole batch at once, but for what a model computes of several images together: statistics of
a batch norm are those of a part. So is the padding, unless the model knows ``padded_size``, as ``FocalRetinaNet`` does.
"""

import contextlib
from functools import partial
from typing import NamedTuple

import torch

from retina_plugin.losses import LossNormalizer
from retina_plugin.modeling.precision import autocast


class StepResult(NamedTuple):
    """What a step leaves besides gradients.

    losses: dict name -> 0-dim tensor without gradient, those of the whole batch.
    num_positives: 0-dim integer tensor, this process's positive anchors; None for a model without a LossNormalizer.
    divisor: 0-dim float tensor, what the losses were divided by; None likewise.
    """

    losses: dict
    num_positives: torch.Tensor | None
    divisor: torch.Tensor | None


def split_batch(batch, num_parts):
    """Split a list of images into at most ``num_parts`` lists, in order and as even as whole images allow.

    Of several parts, the images are told the ``padded_size`` (height, width) of the batch; see ``FocalRetinaNet``.
    """
    num_parts = min(num_parts, len(batch))
    if num_parts <= 1:
        return [batch]
    heights, widths = zip(*(image["image"].shape[-2:] for image in batch))
    batch = [{**image, "padded_size": (max(heights), max(widths))} for image in batch]
    ends = [len(batch) * i // num_parts for i in range(num_parts + 1)]
    return [batch[start:end] for start, end in zip(ends, ends[1:])]


def add_gradients(model, batch, num_parts, *, precision="fp32", scale_loss=None, divisor=None):
    """Forward and backward of a batch in parts: adds its gradients to those of the parameters, which are expected to
    have none.

    A detector with a :class:`LossNormalizer` divides the losses of the whole batch by one number, which only the last
    part knows. The gradients of those before are corrected in place before the last backward pass, so that
    ``DistributedDataParallel``, which reduces in that one alone, overlaps as ever and every process has applied its own
    divisor. Of any other model, the losses are the mean over images of those of the parts.

    Args:
        model: in training, images -> dict of losses or a loss; possibly within ``DistributedDataParallel``.
        batch: list of images as the model takes them.
        num_parts: how many parts at most.
        precision: what forward computes in; see :mod:`retina_plugin.modeling.precision`.
        scale_loss: function that a loss goes through before its backward pass, as ``GradScaler.scale``.
        divisor: see :meth:`LossNormalizer.step_in_parts`.

    Returns:
        StepResult
    """
    parts = split_batch(batch, num_parts)
    in_precision = partial(autocast, next(model.parameters()).device.type, precision)
    normalizers = [m for m in model.modules() if isinstance(m, LossNormalizer)]
    if len(normalizers) != 1:
        weights = [len(part) / len(batch) for part in parts]
        return StepResult(_run(model, parts, weights, in_precision, scale_loss), None, None)
    with normalizers[0].step_in_parts(len(parts), divisor) as step:
        losses = _run(model, parts, [1.0] * len(parts), in_precision, scale_loss, step)
        return StepResult(losses, step.num_positives, step.divisor)


def _run(model, parts, weights, in_precision, scale_loss, step=None):
    sums = {}
    for i, (part, weight) in enumerate(zip(parts, weights)):
        is_last = i == len(parts) - 1
        with contextlib.nullcontext() if is_last else _no_sync(model):
            with in_precision():
                losses = model(part)
            if isinstance(losses, torch.Tensor):
                losses = {"total_loss": losses}
            if weight != 1:
                losses = {name: weight * loss for name, loss in losses.items()}
            if is_last and i > 0 and step is not None:
                _multiply(sums, model, step.correction)
            total = sum(losses.values())
            (total if scale_loss is None else scale_loss(total)).backward()
        sums = {name: loss.detach() + sums[name] if sums else loss.detach() for name, loss in losses.items()}
    return sums


def _no_sync(model):
    return model.no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()


def _multiply(losses, model, factor):
    for name, loss in losses.items():
        losses[name] = loss * factor.to(loss.dtype)
    for gradients in _by_type(p.grad for p in model.parameters() if p.grad is not None):
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


def _by_type(gradients):
    lists = {}
    for gradient in gradients:
        lists.setdefault(gradient.dtype, []).append(gradient)
    return lists.values()
