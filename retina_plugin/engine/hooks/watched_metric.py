"""The best checkpoint and early stopping, by one metric."""

import logging
import os

from detectron2.engine import HookBase
from detectron2.utils import comm

from retina_plugin.checkpoint import CheckpointError, read_checkpoint
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean
from retina_plugin.engine.hooks.best_value import BestValue

BEST = "model_best"


class TrainingEnded(BaseException):
    """Ends the loop of a training, on all processes; for the trainer that is no failure.

    It is no ``Exception``, which Detectron2's loop would log as one.
    """


class WatchedMetric(HookBase):
    """Saves ``model_best.pth`` whenever a metric is better than ever, and ends a training in which it no longer is.

    The evaluation's results are on the main process alone. It tells the others, so that all decide the same.

    Resuming goes on from where the run was, not from the best: ``last_checkpoint`` never names ``model_best.pth``. The
    checkpoint of an iteration is written before its evaluation, which its state therefore misses. So a resumed run asks
    ``model_best.pth`` as well, which holds the state at the best evaluation.
    """

    def __init__(self, metric, mode, *, period, checkpointer, patience=0, min_delta=0.0):
        """
        Args:
            metric: its name among the results, such as "bbox/AP".
            mode: "max" or "min": which of its values are good.
            period: iterations between two evaluations that give the metric; 0: there is only the one at the end.
            checkpointer: the trainer's :class:`~retina_plugin.checkpoint.RetinaCheckpointer`.
            patience: end the training after so many evaluations without a value better by more than ``min_delta``
                than the last one that was; 0: never.
            min_delta: see ``patience``; the best checkpoint is the best by however little.
        """
        self.metric = metric
        self.period = period
        self.patience = patience
        self.best = BestValue(mode)
        self.reference = BestValue(mode, min_delta)
        self.checkpointer = checkpointer
        self._watched_from = None  # iterations done when watching began
        self._ended = False
        self._logger = logging.getLogger(__name__)

    def before_train(self):
        """
        Raises:
            TrainingEnded: the run that is resumed was ended here, with no more patience than now.
        """
        start = self.trainer.start_iter
        if start > 0:
            self._learn_from_best_file()
        if self._watched_from is None:
            self._watched_from = start
        if not self._ended:
            return
        if self.patience and self._waited(start) >= self.patience:
            message = (
                f"This run is complete: early stopping ended it after iteration {start - 1}, {self._waited(start)} "
                f"evaluations of {self.metric} after the last one that was better. Nothing is trained. To go on, raise "
                "TEST.EARLY_STOPPING.PATIENCE, or set it to 0."
            )
            self._logger.warning(message)
            raise TrainingEnded(message)
        self._ended = False

    def before_step(self):
        if self._ended:  # not sooner, so that every hook has seen the last step
            raise TrainingEnded("early stopping")

    def after_step(self):
        done = self.trainer.iter + 1
        # As Detectron2's EvalHook, which leaves the last one to after_train.
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter:
            self._judge(done)
            if self.patience and self._waited(done) >= self.patience:
                self._end(done)

    def after_train(self):
        if self.trainer.iter + 1 >= self.trainer.max_iter and not self._ended:
            self._judge(self.trainer.max_iter)

    def _judge(self, done):
        value = self._latest_value()
        before = self.best.value
        self.reference.update(value, done)  # before the file is written, which holds both
        if self.best.update(value, done):
            than = "" if before is None else f", better than {before:.4f}"
            self._logger.info("%s is %.4f%s: saving %s.pth", self.metric, value, than, BEST)
            self.checkpointer.save(BEST, is_last=False, iteration=done - 1)
        elif before is None:
            self._logger.warning("%s is %s, which is no value to choose the best checkpoint by", self.metric, value)
        else:
            self._logger.info(
                "%s is %.4f; the best is %.4f, of iteration %d", self.metric, value, before, self.best.iteration - 1
            )

    def _latest_value(self):
        storage, fresh = self.trainer.storage, None
        if comm.is_main_process():
            # Results of an evaluation have a task in their name; what a step logs has none.
            latest = storage.latest().items()
            fresh = {name: value for name, (value, at) in latest if at == storage.iter and "/" in name}
        fresh = comm.all_gather(fresh)[0]
        if self.metric not in fresh:
            names = [name for name in fresh if "/AP-" not in name]
            hint = did_you_mean(self.metric, fresh)
            raise ConfigError([
                f"TEST.BEST_CHECKPOINT.METRIC is '{self.metric}', which no evaluation gives.{hint} There are: "
                f"{', '.join(names) or 'none'}"
            ])  # fmt: skip
        return fresh[self.metric]

    def _waited(self, done):
        """Evaluations since the metric was last better by enough."""
        since = self._watched_from if self.reference.iteration is None else self.reference.iteration
        return max(done // self.period - since // self.period, 0)

    def _end(self, done):
        self._ended = True
        last = self.reference
        best = "it never had a value" if last.value is None else f"{last.value:.4f} in iteration {last.iteration - 1}"
        self._logger.info(
            "Early stopping after iteration %d: %s has not become better by more than %g in %d evaluations (%s). "
            "The last weights are in model_final.pth, the best in %s.pth.",
            *(done - 1, self.metric, last.min_delta, self._waited(done), best, BEST),
        )
        self.checkpointer.save("model_final", iteration=done - 1)
        comm.synchronize()  # whoever goes on, goes on from this file

    # What a resumed run needs.

    def state_dict(self):
        return {
            "metric": self.metric,
            "mode": self.best.mode,
            "best": self.best.state_dict(),
            "reference": self.reference.state_dict(),
            "watched_from": self._watched_from,
            "ended": self._ended,
        }

    def load_state_dict(self, state):
        if (state["metric"], state["mode"]) != (self.metric, self.best.mode):
            self._logger.warning(
                "The best checkpoint was chosen by %s (%s) and is now by %s (%s): its search starts anew",
                *(state["metric"], state["mode"], self.metric, self.best.mode),
            )
            return
        self.best.load_state_dict(state["best"])
        self.reference.load_state_dict(state["reference"])
        self._watched_from = state["watched_from"]
        self._ended = state["ended"]

    def _learn_from_best_file(self):
        state = comm.all_gather(self._state_of_best_file() if comm.is_main_process() else None)[0]
        if state is None or (state["metric"], state["mode"]) != (self.metric, self.best.mode):
            return
        if self.best.improves(state["best"]["value"]):
            self.best.load_state_dict(state["best"])
        if self.reference.improves(state["reference"]["value"]):
            self.reference.load_state_dict(state["reference"])

    def _state_of_best_file(self):
        path = os.path.join(self.checkpointer.save_dir, f"{BEST}.pth")
        if not self.checkpointer.path_manager.exists(path):
            return None
        try:
            file = read_checkpoint(path, allow_pickle=self.checkpointer.allow_pickle)
            return file["trainer"]["hooks"][type(self).__qualname__]
        except (CheckpointError, KeyError, TypeError) as error:
            self._logger.warning("%s does not tell how good it is (%s): the next best replaces it", path, error)
            return None
