"""Restores what a forward pass changes, where its step is not applied."""

import torch
from torch import Tensor, nn

from retina_plugin.core.rng import set_torch_random_state, torch_random_state


class Rollback:
    """Buffers of a model (statistics of norms, the average of the loss normalizer) and torch's random state.

    Copies are made on the device of the buffers, without waiting for it.

    Attributes:
        random_state: torch's at the last :meth:`save`.
    """

    random_state: dict[str, Tensor]

    def __init__(self, model: nn.Module):
        self._model = model
        self._buffers: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._was_finite: Tensor | None = None

    @torch.no_grad()
    def save(self) -> None:
        """Copy everything as it is now."""
        buffers = list(self._model.buffers())
        if [id(b) for b in buffers] != [id(b) for b in self._buffers]:  # at first, and after the model was moved
            self._buffers, self._copies = buffers, [b.clone() for b in buffers]
            self._was_finite = self._are_finite()
        elif buffers:
            torch._foreach_copy_(self._copies, buffers)
        self.random_state = torch_random_state()

    @torch.no_grad()
    def count_nonfinite(self) -> Tensor:
        """Count the values of floating-point buffers that have become infinite or NaN, as a 0-dim tensor.

        Values that were so at the first :meth:`save`, as in a mask of -inf, do not count.
        """
        return torch.zeros(()) if self._was_finite is None else (self._was_finite & ~self._are_finite()).sum()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back as it was at the last :meth:`save`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        set_torch_random_state(self.random_state)

    def _are_finite(self) -> Tensor:
        # All in one tensor: an operator for each of some hundred buffers would take longer than their values.
        values = [b.flatten() for b in self._buffers if b.is_floating_point() and b.dtype.itemsize > 1]
        return torch.cat([v.to(values[0].device) for v in values]).isfinite() if values else torch.ones(1).isfinite()
