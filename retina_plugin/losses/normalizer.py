"""The divisor of the losses: the number of anchors assigned to a box (section 4.1, "Focal Loss")."""

from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn


class Normalizer(Protocol):
    """The interface of a loss normalizer, called once a step, before the first forward pass."""

    def __call__(self, num_positives: Tensor) -> Tensor:
        """Return the divisor of the losses, > 0, for this rank's positive anchors of the whole step; 0-dim tensors."""


class LossNormalizer(nn.Module):
    """Turns the number of positive anchors of a step into the divisor of both losses.

    ====================  ===============================================================================
    ``ema``               exponential moving average of this rank's count, as Detectron2: starts at 100,
                          momentum 0.9; steadies training with few images a GPU.
    ``positives``         this rank's count, as the paper.
    ``positives_global``  mean count over all ranks. Data-parallel training averages the gradients of the
                          ranks, so the result is that of one rank with all images.
    ====================  ===============================================================================

    A step without positives counts as one positive. Every mode saves the average with the model, so that a run can
    change its mode; a checkpoint without the average (every model-zoo file) leaves it unchanged.

    Raises:
        ValueError: unknown mode.
    """

    MODES = ("ema", "positives", "positives_global")
    INITIAL = 100.0
    MOMENTUM = 0.9

    ema: Tensor

    def __init__(self, mode: str) -> None:
        super().__init__()
        if mode not in self.MODES:
            raise ValueError(f"loss normalizer '{mode}' is none of {', '.join(self.MODES)}")
        self.mode = mode
        self.register_buffer("ema", torch.tensor(self.INITIAL))

    @torch.no_grad()
    def forward(self, num_positives: Tensor) -> Tensor:
        if self.mode == "ema":
            self.ema.lerp_(num_positives.clamp(min=1).to(self.ema.dtype), 1 - self.MOMENTUM)
            # A copy: the next step changes the buffer, and this step's backward may come later.
            return self.ema.clone()
        count = num_positives.float()
        if self.mode == "positives_global" and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            return count.clamp(min=1) / distributed.get_world_size()
        return count.clamp(min=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(prefix + "ema", self.ema)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"mode={self.mode}"
