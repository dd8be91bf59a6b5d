"""What the losses are divided by: the number of anchors assigned to a box (section 4.1, "Focal Loss")."""

import torch
from torch import distributed as dist
from torch import nn


class LossNormalizer(nn.Module):
    """Turns the number of positive anchors of a step into the divisor of both losses.

    ====================  ===============================================================================
    ``ema``               exponential moving average of this process's count, as Detectron2: starts at
                          100, momentum 0.9, and steadies training with few images a GPU.
    ``positives``         this process's count, as the paper.
    ``positives_global``  the mean count over all processes. As data-parallel training averages the
                          gradients of the processes, the result is that of one process with all images.
    ====================  ===============================================================================

    A step without positives counts as one positive. The average lives in a buffer, which is saved with the
    model in every mode: a run can change its mode and still load its checkpoint. A checkpoint without the
    buffer (every model-zoo file) leaves the average where it starts, without a word.

    Raises:
        ValueError: unknown mode.
    """

    MODES = ("ema", "positives", "positives_global")
    INITIAL = 100.0
    MOMENTUM = 0.9

    def __init__(self, mode):
        super().__init__()
        if mode not in self.MODES:
            raise ValueError(f"loss normalizer '{mode}' is none of {', '.join(self.MODES)}")
        self.mode = mode
        self.register_buffer("ema", torch.tensor(self.INITIAL))

    @torch.no_grad()
    def forward(self, num_positives):
        """
        Args:
            num_positives: 0-dim integer tensor, the positive anchors of this process's images.

        Returns:
            0-dim float tensor > 0, on the same device.
        """
        if self.mode == "ema":
            self.ema.lerp_(num_positives.clamp(min=1).to(self.ema.dtype), 1 - self.MOMENTUM)
            # A copy: the next step changes the buffer, and this step's backward may come later.
            return self.ema.clone()
        count = num_positives.float()
        if self.mode == "positives_global" and dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            return count.clamp(min=1) / dist.get_world_size()
        return count.clamp(min=1)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        state_dict.setdefault(prefix + "ema", self.ema)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self):
        return f"mode={self.mode}"
