"""Early stopping."""

import logging
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.engine.hooks.metric import improves, latest_metric


class TrainingEnded(BaseException):
    """Ends the training loop on all ranks. Not an ``Exception``, which Detectron2's loop would log as a failure."""


class EarlyStopping(HookBase):
    """Ends a training whose metric has not improved for ``patience`` evaluations, with its last weights saved."""

    def __init__(
        self, period: int, checkpointer: RetinaCheckpointer, metric: str, mode: str, patience: int, min_delta: float = 0
    ):
        """
        Args:
            period, checkpointer, metric, mode: see
                :class:`~retina_plugin.engine.hooks.best_checkpoint.BestCheckpoint`.
            patience: in evaluations; 0 to never stop early.
            min_delta: an improvement is larger than this.
        """
        self._period, self._checkpointer = period, checkpointer
        self._metric, self._mode = metric, mode
        self._patience, self._min_delta = patience, min_delta
        self._best: float | None = None
        self._since = -1  # iterations done at the last improvement, or when the search began
        self._has_ended = False
        self._logger = logging.getLogger(__name__)

    def before_train(self) -> None:
        """
        Raises:
            TrainingEnded: the run that is resumed was stopped early, and its patience is not larger now.
        """
        start = self.trainer.start_iter
        if self._since < 0:
            self._since = start
        if self._has_ended and self._patience and self._waited(start) >= self._patience:
            message = (
                f"This run is complete: early stopping ended it after iteration {start - 1}, {self._waited(start)} "
                f"evaluations after the last one in which {self._metric} improved. Nothing is trained. To go on, raise "
                "TEST.EARLY_STOPPING.PATIENCE, or set it to 0."
            )
            self._logger.warning(message)
            raise TrainingEnded(message)
        self._has_ended = False

    def before_step(self) -> None:
        if self._has_ended:  # raised here because all hooks have seen the last step now
            raise TrainingEnded("early stopping")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period <= 0 or done % self._period or done == self.trainer.max_iter:
            return
        value = latest_metric(self.trainer.storage, self._metric)
        if improves(value, self._best, self._mode, self._min_delta):
            self._best, self._since = value, done
        elif self._patience and self._waited(done) >= self._patience:
            self._end(done)

    def _waited(self, done: int) -> int:
        """Count the evaluations since the metric improved."""
        return done // self._period - self._since // self._period

    def _end(self, done: int) -> None:
        self._has_ended = True
        best = "never finite" if self._best is None else f"{self._best:.4f} in iteration {self._since - 1}"
        self._logger.info(
            "Early stopping after iteration %d: %s has not improved by more than %g in %d evaluations (%s). The last "
            "weights are in model_final.pth, the best in model_best.pth.",
            *(done - 1, self._metric, self._min_delta, self._waited(done), best),
        )
        self._checkpointer.save("model_final", iteration=done - 1)
        comm.synchronize()  # no rank goes on before the file is written

    def state_dict(self) -> dict[str, Any]:
        state = {"metric": self._metric, "mode": self._mode, "value": self._best}
        return {**state, "since": self._since, "ended": self._has_ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["metric"], state["mode"]) == (self._metric, self._mode):  # otherwise the search starts anew
            self._best, self._since, self._has_ended = state["value"], state["since"], state["ended"]
