"""``run_state.json``: which evaluation a run has done, and how good ``model_best.pth`` is.

A checkpoint is written before the evaluation of its iteration. When it is resumed, this file has the results of that
evaluation if it was done.
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

_TYPES = {"iteration": (int, type(None)), "config": (str,), "results": (dict,), "best": (dict, type(None))}

Results = dict[str, Any]  # nested dict of floats by name on the main rank, empty on the others


class RunState:
    """Results of the last evaluation and state of the best checkpoint. All ranks call all methods.

    Attributes:
        best: the state of :class:`~retina_plugin.engine.hooks.best_checkpoint.BestCheckpoint`; None if there is none.
    """

    def __init__(self, output_dir: str, config: str):
        """
        Args:
            output_dir: folder of the run; empty to write nothing.
            config: the configuration as YAML. Results of another configuration are not used.
        """
        self.best: dict[str, Any] | None = None
        self._path = os.path.join(output_dir, "run_state.json") if output_dir else ""
        self._config = hashlib.sha256(config.encode()).hexdigest()
        self._iteration: int | None = None
        self._results: dict[str, Results] = {}
        self._logger = logging.getLogger(__name__)

    def load(self) -> None:
        """Read the file of the run that is resumed."""
        state = comm.all_gather(self._read() if comm.is_main_process() else None)[0]
        self.best = state.get("best")
        if state.get("config") == self._config:
            self._iteration, self._results = state["iteration"], state["results"]

    def start(self, iteration: int | None) -> None:
        """Drop the results of all iterations but the one that the run is resumed after, and write the file."""
        if self._iteration != iteration:
            self._iteration, self._results = None, {}
        self._write()

    def evaluate(self, name: str, trainer: TrainerBase, evaluation: Callable[[], Results]) -> Results:
        """Run an evaluation, or return its results if it was done before the run was resumed."""
        iteration = last_iteration(trainer)
        if iteration == self._iteration and name in self._results:
            message = "The evaluation '%s' of iteration %d was done before: its results are those in %s"
            self._logger.info(message, name, iteration, self._path)
            return self._results[name] if comm.is_main_process() else {}
        results = evaluation()
        if iteration != self._iteration:
            self._iteration, self._results = iteration, {}
        self._results[name] = results or {}
        self._write()
        return results

    def record_best(self, best: dict[str, Any]) -> None:
        """Write the state of the best checkpoint, after its file."""
        self.best = best
        self._write()

    def _read(self) -> dict[str, Any]:
        if not self._path or not PathManager.exists(self._path):
            return {}
        try:
            with PathManager.open(self._path) as file:
                state = json.load(file)
            _check(state)
            return {key: state[key] for key in _TYPES}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            message = "%s cannot be used (%r): evaluations are repeated, and model_best.pth may be replaced"
            self._logger.warning(message, self._path, error)
            return {}

    def _write(self) -> None:
        if self._path and comm.is_main_process():
            PathManager.mkdirs(os.path.dirname(self._path))
            state = {"iteration": self._iteration, "config": self._config, "results": self._results, "best": self.best}
            atomic_write_text(self._path, json.dumps(state, default=float))


def last_iteration(trainer: TrainerBase) -> int:
    """Return the last iteration that was done, in a hook's ``after_step`` and ``after_train`` alike."""
    return min(trainer.iter, trainer.max_iter - 1)


def _check(state: Any) -> None:
    for key, types in _TYPES.items():
        if not isinstance(state[key], types):
            raise TypeError(f"{key} is {state[key]!r}")
    best = state["best"]
    if best is not None and not (isinstance(best["value"], (int, float)) and isinstance(best["iteration"], int)):
        raise TypeError(f"best is {best!r}")
    if not all(_is_results(results) for results in state["results"].values()):
        raise TypeError(f"results are {state['results']!r}")


def _is_results(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(x, (int, float)) or _is_results(x) for x in value.values())
