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

    @torch.no_grad()
    def save(self) -> None:
        """Copy everything as it is now."""
        buffers = list(self._model.buffers())
        if [id(b) for b in buffers] != [id(b) for b in self._buffers]:  # at first, and after the model was moved
            self._buffers, self._copies = buffers, [b.clone() for b in buffers]
        elif buffers:
            torch._foreach_copy_(self._copies, buffers)
        self.random_state = torch_random_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back as it was at the last :meth:`save`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        set_torch_random_state(self.random_state)
