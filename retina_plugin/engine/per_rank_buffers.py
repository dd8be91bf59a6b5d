"""Buffers that differ between ranks, such as statistics of batch norms and the loss normalizer's average.

Data-parallel training keeps parameters equal on all ranks, but not buffers, and a checkpoint has the main rank's model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn


class PerRankBuffers(HookBase):
    """Saves the buffers of every rank that differ from the main rank's, before a checkpoint is written."""

    def __init__(self, model: nn.Module, periods: Sequence[int]):
        """
        Args:
            model: without ``DistributedDataParallel`` around it.
            periods: of the hooks that may write a checkpoint, in iterations; 0 for none.
        """
        self._model = model
        self._periods = periods
        self._buffers: list[dict[str, Tensor]] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_due = done == self.trainer.max_iter or any(period > 0 and done % period == 0 for period in self._periods)
        if comm.get_world_size() == 1 or not (is_due or self.trainer.stop_reason):
            return
        names = {name for name, _ in self._model.named_buffers()}
        ranks = comm.gather({name: value.cpu() for name, value in self._model.state_dict().items() if name in names})
        self._buffers = [{name: x for name, x in rank.items() if not torch.equal(x, ranks[0][name])} for rank in ranks]

    def state_dict(self) -> dict[str, Any]:
        return {"of_processes": self._buffers} if self._buffers else {}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._buffers = state["of_processes"]
        if len(self._buffers) == comm.get_world_size():  # otherwise all ranks begin with the main rank's buffers
            buffers = dict(self._model.named_buffers())
            for name, value in self._buffers[comm.get_rank()].items():
                buffers[name].copy_(value)
