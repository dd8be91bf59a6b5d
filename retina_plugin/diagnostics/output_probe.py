"""What a dense detector puts out before scores are cut at a threshold."""

import logging
import math
from typing import NamedTuple

import torch
from detectron2.evaluation import inference_context


class Outputs(NamedTuple):
    """Of some images.

    not_finite: share of all outputs that are NaN or infinite.
    highest, mean: of the finite scores; None if there are none.
    spread: difference between the highest and the lowest finite logit.
    """

    not_finite: float
    highest: float | None
    mean: float | None
    spread: float | None


@torch.no_grad()
def probe(model, images):
    """Run a detector on images.

    Args:
        model: a detector whose ``head`` gives (logits, deltas), lists of tensors.
        images: list of its inputs.

    Returns:
        :class:`Outputs`; None if the model is none of these, or fails on the images.
    """
    seen, head = _Sums(), getattr(model, "head", None)
    if head is None or not images:
        return None
    handle = head.register_forward_hook(lambda head, inputs, outputs: seen.add(*outputs))
    try:
        with inference_context(model):
            for image in images:
                model([image])
    except Exception:  # a diagnosis must not be what an evaluation fails of
        logging.getLogger(__name__).debug("The model does not run again on its inputs", exc_info=True)
        return None
    finally:
        handle.remove()
    return seen.outputs()


class _Sums:
    """Level by level: all logits of some images would be a gigabyte."""

    def __init__(self):
        self.num_outputs = self.num_finite = self.num_scores = 0
        self.sum_of_scores = 0.0
        self.lowest, self.highest = math.inf, -math.inf

    def add(self, logits, deltas):
        for outputs in (*logits, *deltas):
            self.num_outputs += outputs.numel()
            self.num_finite += outputs.isfinite().sum().item()
        for level in logits:
            finite = level[level.isfinite()].float()
            if len(finite):
                self.num_scores += len(finite)
                self.sum_of_scores += finite.sigmoid().sum(dtype=torch.float64).item()
                self.lowest = min(self.lowest, finite.min().item())
                self.highest = max(self.highest, finite.max().item())

    def outputs(self):
        not_finite = 1 - self.num_finite / self.num_outputs
        if self.num_scores == 0:
            return Outputs(not_finite, None, None, None)
        highest = torch.tensor(self.highest).sigmoid().item()
        return Outputs(not_finite, highest, self.sum_of_scores / self.num_scores, self.highest - self.lowest)
