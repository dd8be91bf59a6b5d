"""The trainer around a model whose weight is the number of steps that it has had, with given values of its metric."""

import math

import numpy as np

import retina_plugin

import torch  # isort: skip
from detectron2.config import get_cfg  # isort: skip
from detectron2.utils import comm  # isort: skip

from retina_plugin.engine import RetinaTrainer


class Killed(BaseException):
    pass


class Loop(RetinaTrainer):
    """After ``n`` iterations the metric bbox/AP is ``values[n]``; the process is killed in iteration ``killed_in``.

    With ``killed_after``, it is killed as soon as the evaluation after so many iterations has been written down.
    """

    def __init__(
        self,
        values,
        folder,
        *,
        period=2,
        checkpoint_period=3,
        killed_in=None,
        killed_after=None,
        metric="bbox/AP",
        mode="max",
        patience=0,
        min_delta=0.0,
    ):
        self.values, self.killed_in, self.killed_after, self.steps = values, killed_in, killed_after, 0
        self.was_killed, self.evaluated = False, []
        cfg = get_cfg()
        retina_plugin.add_retina_config(cfg)
        cfg.OUTPUT_DIR, cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = str(folder), "cpu", (), ()
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.STEPS = len(values) - 1, checkpoint_period, ()
        cfg.TEST.EVAL_PERIOD = period
        cfg.TEST.BEST_CHECKPOINT.METRIC, cfg.TEST.BEST_CHECKPOINT.MODE = metric, mode
        cfg.TEST.EARLY_STOPPING.PATIENCE, cfg.TEST.EARLY_STOPPING.MIN_DELTA = patience, min_delta
        super().__init__(cfg)
        self.kill_when_written()

    @classmethod
    def build_model(cls, cfg):
        model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(model.weight)
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        return []

    def build_writers(self):
        return []

    def test(self, cfg, model, evaluators=None):
        done = min(self.iter + 1, self.max_iter)
        self.evaluated.append(done)
        if comm.is_main_process():
            return {"bbox": {"AP": self.values[done], "AP-cat": 0.0}}
        return {}

    def kill_when_written(self):
        write = self.run_state._write

        def write_and_kill():
            write()
            if self.evaluated[-1:] == [self.killed_after]:
                self.kill()

        self.run_state._write = write_and_kill

    def run_step(self):
        if self.iter == self.killed_in:
            self.kill()
        self.checkpointer.model.weight.data += 1
        self.optimizer.step()  # without gradients, for the learning rate schedule
        self.steps += 1

    def kill(self):
        self.was_killed = True
        raise Killed

    def after_train(self):
        if not self.was_killed:  # nothing runs in a process that was killed
            super().after_train()

    def run(self, resume=False):
        """Returns whether the training was ended early, None if it was killed."""
        self.resume_or_load(resume=resume)
        try:
            self.train()
        except Killed:
            return None
        return self.iter < self.max_iter


def random_values(count=25):
    values = np.random.randint(0, 8, count).astype(float)
    values[np.random.rand(count) < 0.15] = math.nan
    return values.tolist()


def weight(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]["weight"].item()


def evaluated(values, period=2):
    """(iterations done, value) of every evaluation of a whole run."""
    last = len(values) - 1
    return [(done, values[done]) for done in sorted({*range(period, last, period), last})]


def expected_best(values):
    finite = [(value, -done) for done, value in evaluated(values) if math.isfinite(value)]
    return -max(finite)[1] if finite else None
