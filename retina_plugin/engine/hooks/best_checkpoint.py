"""The best checkpoint."""

import logging
from typing import Any

from detectron2.engine import hooks

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.engine.hooks.metric import improves, latest_metric
from retina_plugin.engine.run_state import RunState, last_iteration


class BestCheckpoint(hooks.BestCheckpointer):
    """Saves ``model_best.pth`` whenever the metric is better than ever before in the run.

    In addition to Detectron2's hook: the best value survives resuming, all ranks use the main rank's value, and
    ``last_checkpoint`` never names ``model_best.pth``, so that a run is resumed where it stopped.
    """

    best_metric: float | None
    best_iter: int | None

    def __init__(self, period: int, checkpointer: RetinaCheckpointer, metric: str, mode: str, run_state: RunState):
        """
        Args:
            period: iterations between two evaluations that give the metric; 0 if only the final one does.
            metric: such as "bbox/AP".
            mode: "max" if high values are good, "min" if low ones are.
            run_state: has the best value also if the checkpoint that is resumed is older.
        """
        super().__init__(period, checkpointer, metric, mode)
        self.checkpointer, self.metric, self.mode, self.run_state = checkpointer, metric, mode, run_state
        self._logger = logging.getLogger(__name__)

    def before_train(self) -> None:
        best = self.run_state.best
        if best and self._is_same_metric(best) and improves(best["value"], self.best_metric, self.mode):
            self.best_metric, self.best_iter = best["value"], best["iteration"]

    def _best_checking(self) -> None:
        value, before = latest_metric(self.trainer.storage, self.metric), self.best_metric
        if improves(value, before, self.mode):
            self.best_metric, self.best_iter = value, last_iteration(self.trainer)
            than = "" if before is None else f", better than {before:.4f}"
            self._logger.info("%s is %.4f%s: saving model_best.pth", self.metric, value, than)
            self.checkpointer.save("model_best", is_last=False, iteration=self.best_iter)
            self.run_state.record_best(self.state_dict())
        elif before is None:
            self._logger.warning("%s is %s: no finite value to choose the best checkpoint by yet", self.metric, value)
        else:
            message = "%s is %.4f; the best is %.4f, of iteration %d"
            self._logger.info(message, self.metric, value, before, self.best_iter)

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "mode": self.mode, "value": self.best_metric, "iteration": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._is_same_metric(state):
            self.best_metric, self.best_iter = state["value"], state["iteration"]
            return
        self._logger.warning(
            "The best checkpoint was chosen by %s (%s) and is now chosen by %s (%s): its search starts anew",
            *(state["metric"], state["mode"], self.metric, self.mode),
        )

    def _is_same_metric(self, state: dict[str, Any]) -> bool:
        return (state.get("metric"), state.get("mode")) == (self.metric, self.mode)
