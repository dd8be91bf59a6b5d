"""What a forward pass changes, to be put back where its step is not applied."""

import torch

from retina_plugin.core.rng import set_torch_random_state, torch_random_state


class Rollback:
    """Buffers of a model (statistics of norms, the average of the loss normalizer) and torch's random state.

    Copies are made on the device of the buffers, without waiting for it.
    """

    def __init__(self, model):
        self._model = model
        self._buffers = self._copies = []

    @torch.no_grad()
    def remember(self):
        """Copy everything as it is now."""
        buffers = list(self._model.buffers())
        if [id(b) for b in buffers] != [id(b) for b in self._buffers]:  # at first, and after the model was moved
            self._buffers, self._copies = buffers, [b.clone() for b in buffers]
        elif buffers:
            torch._foreach_copy_(self._copies, buffers)
        self.random_state = torch_random_state()

    @torch.no_grad()
    def put_back(self):
        """Make everything as it was at the last :meth:`remember`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        set_torch_random_state(self.random_state)
