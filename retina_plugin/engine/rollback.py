"""What a forward pass changes, to be put back where its step is not applied."""

import torch


class Rollback:
    """Buffers of a model (statistics of norms, the average of the loss normaliser) and torch's random state.

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
        self.random_state = random_state()

    @torch.no_grad()
    def put_back(self):
        """Make everything as it was at the last :meth:`remember`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        set_random_state(self.random_state)


def random_state():
    """State of torch's generators on the CPU and, where it is in use, on this process's GPU: dict of uint8 tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state):
    """Of :func:`random_state`. That of a GPU is left out where there is none."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
