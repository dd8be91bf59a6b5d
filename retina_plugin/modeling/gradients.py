"""Computes losses and gradients of a batch, in micro-batches of few images one after the other.

The result is that of the whole batch at once, except for what a model computes from several images together: statistics
of a batch norm are those of a micro-batch. So is the padding, unless the model knows ``padded_size``, as
``FocalRetinaNet`` does.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from retina_plugin.modeling.precision import autocast

Batch = list[dict[str, Any]]


class StepResult(NamedTuple):
    """What a step leaves besides gradients.

    Attributes:
        losses: those of the whole batch, 0-dim tensors without gradient.
        num_positives: int64 (L,), this rank's positive anchors of each level; None if the model cannot assign anchors
            before its forward pass.
        divisor: 0-dim float tensor, what the losses were divided by; None likewise.
    """

    losses: dict[str, Tensor]
    num_positives: Tensor | None = None
    divisor: Tensor | None = None


def split_batch(batch: Batch, num_micro_batches: int) -> list[Batch]:
    """Split images into at most ``num_micro_batches`` lists, in order and as even as whole images allow.

    If there are several, the images are told the ``padded_size`` (height, width) of the batch; see ``FocalRetinaNet``.
    """
    num_micro_batches = min(num_micro_batches, len(batch))
    if num_micro_batches <= 1:
        return [batch]
    heights, widths = zip(*(image["image"].shape[-2:] for image in batch))
    batch = [{**image, "padded_size": (max(heights), max(widths))} for image in batch]
    ends = [len(batch) * i // num_micro_batches for i in range(num_micro_batches + 1)]
    return [batch[start:end] for start, end in zip(ends, ends[1:])]


def compute_gradients(
    model: nn.Module,
    batch: Batch,
    num_micro_batches: int,
    *,
    precision: str = "fp32",
    scale_loss: Callable[[Tensor], Tensor] | None = None,
    divisor: Tensor | None = None,
) -> StepResult:
    """Run forward and backward of a batch, and add its gradients to those of the parameters.

    A detector that assigns anchors before its forward pass does so for all micro-batches first. Its loss normalizer is
    asked once, with the positives of all of them, and every micro-batch is divided by its answer. The losses of any
    other model are the mean over images of those of the micro-batches.

    Args:
        model: in training, images -> dict of losses or a loss; possibly within ``DistributedDataParallel``, which
            reduces gradients in the last backward pass.
        batch: images as the model takes them.
        num_micro_batches: how many at most.
        precision: what the forward pass computes in; see :mod:`retina_plugin.modeling.precision`.
        scale_loss: function that a loss goes through before its backward pass, as ``GradScaler.scale``.
        divisor: of a step that is repeated; None to ask the loss normalizer.
    """
    micro_batches = split_batch(batch, num_micro_batches)
    detector: Any = getattr(model, "module", model)
    in_precision = partial(autocast, next(model.parameters()).device.type, precision)
    if not getattr(detector, "assigns_before_forward", False):
        weights = [len(part) / len(batch) for part in micro_batches]
        return StepResult(_run(model, micro_batches, [{}] * len(micro_batches), weights, in_precision, scale_loss))
    targets = [detector.assign(part) for part in micro_batches]
    counts = [detector.num_positives_by_level(part, t) for part, t in zip(micro_batches, targets)]
    num_positives = torch.stack(counts).sum(dim=0)
    if divisor is None:
        divisor = detector.loss_normalizer(num_positives.sum())
    known = [{"targets": t, "divisor": divisor} for t in targets]
    losses = _run(model, micro_batches, known, [1.0] * len(micro_batches), in_precision, scale_loss)
    return StepResult(losses, num_positives, divisor)


def _run(
    model: nn.Module,
    micro_batches: list[Batch],
    known: list[dict[str, Any]],
    weights: list[float],
    in_precision: Callable[[], AbstractContextManager],
    scale_loss: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for i, (part, arguments, weight) in enumerate(zip(micro_batches, known, weights)):
        is_last = i == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else _no_sync(model):
            with in_precision():
                losses = model(part, **arguments)
            if isinstance(losses, Tensor):
                losses = {"total_loss": losses}
            if weight != 1:
                losses = {name: weight * loss for name, loss in losses.items()}
            total = sum(losses.values())
            (total if scale_loss is None else scale_loss(total)).backward()
        sums = {name: loss.detach() + sums[name] if sums else loss.detach() for name, loss in losses.items()}
    return sums


def _no_sync(model: nn.Module) -> AbstractContextManager:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
