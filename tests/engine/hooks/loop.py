"""Detectron2's loop with hooks and checkpoints, around a model whose weight is the number of steps it has had."""

import weakref

import torch
from detectron2.engine import TrainerBase, hooks
from detectron2.utils import comm

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.engine.hooks import TrainingEnded
from retina_plugin.engine.hooks.watched_metric import WatchedMetric


class Killed(BaseException):
    pass


class Loop(TrainerBase):
    """After ``n`` iterations the metric bbox/AP is ``values[n]``; the process is killed in iteration ``killed_in``."""

    def __init__(
        self, values, folder, *, period=2, checkpoint_period=3, max_iter=None, killed_in=None, metric="bbox/AP", **keys
    ):
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.values, self.killed_in, self.steps = values, killed_in, 0
        self.max_iter = len(values) - 1 if max_iter is None else max_iter
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.model.weight)
        self.checkpointer = RetinaCheckpointer(self.model, str(folder), trainer=weakref.proxy(self))
        made = [hooks.EvalHook(period, self.evaluate)]
        if comm.is_main_process():
            made.insert(0, hooks.PeriodicCheckpointer(self.checkpointer, checkpoint_period))
        self.watched = WatchedMetric(
            metric, keys.pop("mode", "max"), period=period, checkpointer=self.checkpointer, **keys
        )
        self.register_hooks([*made, self.watched])

    def evaluate(self):
        if comm.is_main_process():
            return {"bbox": {"AP": self.values[min(self.iter + 1, self.max_iter)], "AP-cat": 0.0}}
        return {}

    def run_step(self):
        if self.iter == self.killed_in:
            raise Killed
        self.model.weight.data += 1
        self.steps += 1

    def after_train(self):
        if self.iter != self.killed_in or self.iter == self.max_iter:  # nothing runs in a process that was killed
            super().after_train()

    def run(self, resume=False):
        """Returns whether the training was ended early."""
        self.checkpointer.resume_or_load("", resume=resume)
        start = self.iter + 1 if resume and self.checkpointer.has_checkpoint() else 0
        try:
            self.train(start, self.max_iter)
        except TrainingEnded:
            return True
        except Killed:
            return None
        return False
