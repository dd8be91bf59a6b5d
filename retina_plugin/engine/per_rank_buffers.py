"""Buffers that each process has for itself, such as its batch norms' statistics and the average of its loss normalizer.

Data-parallel training keeps parameters the same in all processes, but not these. A checkpoint has the model of one
process; what the others have besides goes with it, so that all of them go on as they were.
"""

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm


class PerRankBuffers(HookBase):
    """Has, as its state, the buffers of all processes that are not those of the main one."""

    def __init__(self, model, periods):
        """
        Args:
            model: without ``DistributedDataParallel`` around it.
            periods: of the hooks that may write a checkpoint, in iterations; 0 for none.
        """
        self._model = model
        self._periods = periods
        self._of_processes = []

    @classmethod
    def add_to(cls, all_hooks, model, periods):
        """Put one in front of the hooks that write checkpoints or evaluate; those before it change buffers."""
        later = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        place = next((i for i, hook in enumerate(all_hooks) if isinstance(hook, later)), len(all_hooks))
        return [*all_hooks[:place], cls(model, periods), *all_hooks[place:]]

    def after_step(self):
        done = self.trainer.iter + 1
        is_due = done == self.trainer.max_iter or any(period > 0 and done % period == 0 for period in self._periods)
        if comm.get_world_size() == 1 or not (is_due or self.trainer.stop_reason):
            return
        everyone = comm.gather(self._own())
        self._of_processes = [_different(theirs, everyone[0]) for theirs in everyone]

    def state_dict(self):
        return {"of_processes": self._of_processes} if self._of_processes else {}

    @torch.no_grad()
    def load_state_dict(self, state):
        self._of_processes = state["of_processes"]
        if len(self._of_processes) != comm.get_world_size():
            return  # of another number of processes: all begin with those of the main one
        buffers = dict(self._model.named_buffers())
        for name, value in self._of_processes[comm.get_rank()].items():
            buffers[name].copy_(value)

    def _own(self):
        names = {name for name, _ in self._model.named_buffers()}
        return {name: value.cpu() for name, value in self._model.state_dict().items() if name in names}


def _different(buffers, main):
    return {name: value for name, value in buffers.items() if not torch.equal(value, main[name])}
