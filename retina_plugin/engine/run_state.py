"""``run_state.json``: what a run has evaluated, beside the checkpoint that it is resumed from.

A checkpoint is written before the evaluation of its iteration. This file tells a resumed run whether that evaluation
was done and with which results, and how good ``model_best.pth`` is.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from typing import Any

from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from retina_plugin.core.files import atomic_write_text

Results = dict[str, Any]  # nested dict of floats by name, on the main rank; empty on the others


def last_iteration(trainer: TrainerBase) -> int:
    """Return the last iteration that was done, in a hook's ``after_step`` and after training alike."""
    return min(trainer.iter, trainer.max_iter - 1)


class RunState:
    """Results of the last evaluation and the best checkpoint so far. All ranks call all methods.

    Attributes:
        best: state of :class:`~retina_plugin.engine.hooks.best_checkpoint.BestCheckpoint`; None before the first.
    """

    best: dict[str, Any] | None = None

    def __init__(self, output_dir: str, config: str):
        """
        Args:
            output_dir: folder of the run; empty to write nothing.
            config: the run's configuration as YAML. Results of another configuration are not used.
        """
        self._path = os.path.join(output_dir, "run_state.json") if output_dir else ""
        self._config = hashlib.sha256(config.encode()).hexdigest()
        self._iteration: int | None = None
        self._results: dict[str, Results] = {}

    def load(self) -> None:
        """Read the file of the run that is resumed."""
        state = comm.all_gather(self._read() if comm.is_main_process() else None)[0]
        self.best = state.get("best")
        if state.get("config") == self._config:
            self._iteration, self._results = state["iteration"], state["results"]

    def start(self, iteration: int | None) -> None:
        """Keep only the results of one iteration, the one that the run is resumed after, and write the file."""
        if self._iteration != iteration:
            self._iteration, self._results = None, {}
        self._write()

    def evaluate(self, name: str, trainer: TrainerBase, evaluation: Callable[[], Results]) -> Results:
        """Evaluate, or return the results if this evaluation was done before the run was resumed.

        Args:
            name: of the evaluation.
            trainer: gives the iteration.
            evaluation: returns the results.
        """
        iteration = last_iteration(trainer)
        if iteration == self._iteration and name in self._results:
            logging.getLogger(__name__).info(
                "The evaluation '%s' of iteration %d was done before: its results are in %s",
                *(name, iteration, self._path),
            )
            return self._results[name] if comm.is_main_process() else {}
        results = evaluation()
        if iteration != self._iteration:
            self._iteration, self._results = iteration, {}
        self._results[name] = results or {}
        self._write()
        return results

    def record_best(self, best: dict[str, Any]) -> None:
        """Write down the state of the best checkpoint, once its file is written."""
        self.best = best
        self._write()

    def _read(self) -> dict[str, Any]:
        if not self._path or not PathManager.exists(self._path):
            return {}
        try:
            with PathManager.open(self._path) as file:
                state = json.load(file)
            return {key: state[key] for key in ("iteration", "config", "results", "best")}
        except (ValueError, KeyError, TypeError) as error:
            logging.getLogger(__name__).warning(
                "%s cannot be used (%s): evaluations are repeated, and model_best.pth may be replaced",
                *(self._path, error),
            )
            return {}

    def _write(self) -> None:
        if not self._path or not comm.is_main_process():
            return
        state = {"iteration": self._iteration, "config": self._config, "results": self._results, "best": self.best}
        PathManager.mkdirs(os.path.dirname(self._path))
        atomic_write_text(self._path, json.dumps(state, default=float))
