"""What the losses are divided by: the number of anchors assigned to a box (section 4.1, "Focal Loss")."""

import contextlib

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

    A step whose images come in several forward passes has one divisor all the same; see :meth:`step_in_parts`.

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
        self.parts = None  # the StepInParts that runs now
        self.register_buffer("ema", torch.tensor(self.INITIAL))

    @torch.no_grad()
    def forward(self, num_positives):
        """
        Args:
            num_positives: 0-dim integer tensor, the positive anchors of this process's images.

        Returns:
            0-dim float tensor > 0, on the same device.
        """
        if self.parts is not None:
            return self.parts.divisor_of_part(num_positives)
        return self.divisor(num_positives)

    @contextlib.contextmanager
    def step_in_parts(self, num_parts, divisor=None):
        """While it is entered, ``num_parts`` calls are those of one step.

        Args:
            num_parts: how many calls there will be.
            divisor: 0-dim float tensor, the divisor of a step that is repeated; the average then stays as it is.

        Returns:
            A context manager, which gives the :class:`StepInParts`.
        """
        self.parts = StepInParts(self, num_parts, divisor)
        try:
            yield self.parts
        finally:
            self.parts = None

    def divisor(self, num_positives):
        """The divisor of a whole step, with which the average moves on; see :meth:`forward`."""
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


class StepInParts:
    """The divisors of the parts of one step.

    Only the last part knows the step's count, and gets its divisor N. Those before get a provisional divisor c, the
    same for all of them; what was computed with it is to be multiplied by :attr:`correction`, c / N. No part makes the
    host wait for a GPU, and only the last one makes processes wait for each other.

    Attributes:
        num_positives: 0-dim integer tensor, the positive anchors of the parts so far; None before the first.
        divisor: 0-dim float tensor, N.
        correction: 0-dim double tensor, c / N. Both are there with the last part, and None before.
    """

    def __init__(self, normalizer, num_parts, divisor=None):
        self.num_positives = self.correction = None
        self.divisor = divisor
        self._is_given = divisor is not None
        self._normalizer = normalizer
        self._num_parts = self._num_left = num_parts
        self._provisional = None

    def divisor_of_part(self, num_positives):
        """See :meth:`LossNormalizer.forward`. In a step of one part, every call has its own divisor.

        Raises:
            RuntimeError: there are more calls than parts, of which there are several.
        """
        if self._num_parts > 1 and self._num_left == 0:
            raise RuntimeError(f"the loss normalizer was called more often than the step has parts ({self._num_parts})")
        self._num_left -= 1
        self.num_positives = num_positives if self.num_positives is None else self.num_positives + num_positives
        if self._provisional is None:
            self._provisional = self._guess()
        if self._num_left > 0:
            return self._provisional
        if not self._is_given:
            self.divisor = self._normalizer.divisor(self.num_positives if self._num_parts > 1 else num_positives)
        self.correction = self._provisional.double() / self.divisor
        return self.divisor

    def _guess(self):
        # Any number is right. One that is near lets half precision see gradients of their usual size.
        if self._normalizer.mode == "ema":
            return self._normalizer.ema.clone()
        return (self._num_parts * self.num_positives).float().clamp(min=1)
