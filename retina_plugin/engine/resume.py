"""Resuming a run: which checkpoint, whether the configuration is the same, and the metrics before it."""

import logging
import os
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer
from retina_plugin.checkpoint.reader import read_checkpoint
from retina_plugin.checkpoint.weights_path import resolve_weights
from retina_plugin.config import flatten
from retina_plugin.config.yaml_file import parse_yaml
from retina_plugin.engine.writers import WINDOW

# Keys that do not change what the training computes, or that the checkpoint decides.
_FREE = re.compile(
    r"(OUTPUT_DIR|VERSION|VIS_PERIOD|LOG_PERIOD|CUDNN_BENCHMARK|DATASETS\.TEST|TEST\..*|GLOBAL\..*|MODEL\.WEIGHTS.*"
    r"|MODEL\.DEVICE|DATALOADER\.NUM_WORKERS|DATALOADER\.MAX_UNREADABLE|SOLVER\.(CHECKPOINT_PERIOD|ACCUMULATE_STEPS)"
    r"|SOLVER\.(MAX_NONFINITE_STEPS|REFERENCE_BATCH_SIZE|REFERENCE_WORLD_SIZE)|MODEL\.RETINANET\.\w+_TEST)$"
)
_FROM_CHECKPOINT = {
    "SEED": "the order of the data goes on as it was",
    **dict.fromkeys(
        ("SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "SOLVER.NESTEROV"),
        "the optimizer's settings in the checkpoint are used",
    ),
}


def find_checkpoint(checkpointer: RetinaCheckpointer) -> str | None:
    """Return the path of the checkpoint that a run is resumed from, None if its folder has none.

    Raises:
        CheckpointError: the folder has checkpoints, but no file ``last_checkpoint``; or that does not name one.
    """
    if checkpointer.has_checkpoint():
        try:
            path = checkpointer.get_checkpoint_file()
            resolve_weights(path, checkpointer.path_manager)
            return path
        except CheckpointError as error:
            raise explain(error, checkpointer) from error.__cause__
    # A run that ends before its first checkpoint leaves the best one alone, and starts at iteration 0 again.
    if any(os.path.basename(path) != "model_best.pth" for path in _checkpoints(checkpointer)):
        problem = f"--resume: {checkpointer.save_dir} has checkpoints, but no file last_checkpoint that names one"
        raise CheckpointError(f"{problem}\n{_way_out(checkpointer)}")
    return None


def explain(error: CheckpointError, checkpointer: RetinaCheckpointer) -> CheckpointError:
    """Add the newest usable checkpoint to the error of loading the last one, if that is missing or broken."""
    named = "--resume: "
    try:
        path = checkpointer.get_checkpoint_file()
        named = f"--resume: last_checkpoint of {checkpointer.save_dir} names a file that cannot be used: "
        read_checkpoint(path, allow_pickle=checkpointer.allow_pickle, path_manager=checkpointer.path_manager)
    except CheckpointError:
        return CheckpointError(f"{named}{error}\n{_way_out(checkpointer)}")
    return error


def warn_of_differences(saved: str, cfg: CfgNode) -> None:
    """Warn of keys that change what a resumed run computes.

    Args:
        saved: the YAML of the configuration in the checkpoint.
        cfg: the configuration now.
    """
    before, now = (
        dict(flatten(parse_yaml(text, "the configuration in the checkpoint"))) for text in (saved, cfg.dump())
    )
    lines = []
    for key in sorted({*before, *now}):
        values = before.get(key, "nothing"), now.get(key, "nothing")
        if values[0] != values[1] and not _FREE.match(key):
            note = f" ({_FROM_CHECKPOINT[key]})" if key in _FROM_CHECKPOINT else ""
            lines.append(f"  {key}: {values[0]} in the checkpoint, {values[1]} now{note}")
    if lines:
        logging.getLogger(__name__).warning(
            "The run goes on with another configuration than that of its checkpoint:\n%s", "\n".join(lines)
        )


def metrics_state(storage: EventStorage) -> dict[str, Any]:
    """Return as plain numbers what the writers need of the metrics so far."""
    hints = storage.smoothing_hints()
    return {
        name: {"smoothing_hint": bool(hints[name]), "values": [list(pair) for pair in history.values()[-WINDOW:]]}
        for name, history in storage.histories().items()
    }


def restore_metrics(storage: EventStorage, state: dict[str, Any]) -> None:
    """Put the metrics of :func:`metrics_state` into an empty storage."""
    now = storage.iter
    for name, metric in state.items():
        for value, iteration in metric["values"]:
            storage.iter = iteration
            storage.put_scalar(name, value, smoothing_hint=metric["smoothing_hint"])
    storage.iter = now


def _checkpoints(checkpointer: RetinaCheckpointer) -> list[str]:
    folder, manager = checkpointer.save_dir, checkpointer.path_manager
    try:
        names = manager.ls(folder) if manager.isdir(folder) else []
    except OSError as error:
        raise CheckpointError(f"--resume: {folder} cannot be read ({error})") from error
    return [os.path.join(folder, name) for name in names if re.fullmatch(r"model_.*\.pth", name)]


def _way_out(checkpointer: RetinaCheckpointer) -> str:
    newest = _newest_checkpoint(checkpointer)
    if newest is None:
        return "There is no whole checkpoint of a run in the folder. Start a new run: --overwrite, without --resume"
    iteration, path = newest
    last = os.path.join(checkpointer.save_dir, "last_checkpoint")
    first = f" first move {last} away, then" if os.path.lexists(last) and not os.path.isfile(last) else ""
    return (
        f"The newest whole checkpoint there is {os.path.basename(path)}, after {iteration + 1} iterations. To resume "
        f"from it:{first}\n  printf %s {os.path.basename(path)} > {last}"
    )


def _newest_checkpoint(checkpointer: RetinaCheckpointer) -> tuple[int, str] | None:
    """The last iteration of the newest whole checkpoint, by iteration, and its path."""
    numbers = {path: re.search(r"model_(\d{1,18})\.pth$", path) for path in _checkpoints(checkpointer)}
    numbered = sorted(((int(number[1]), path) for path, number in numbers.items() if number), reverse=True)
    others = [(_iteration(path, checkpointer), path) for path, number in numbers.items() if not number]
    newest = max(((iteration, path) for iteration, path in others if iteration is not None), default=None)
    for number, path in numbered:
        if newest is not None and number < newest[0]:
            break
        iteration = _iteration(path, checkpointer)
        if iteration is not None:
            return iteration, path
    return newest


def _iteration(path: str, checkpointer: RetinaCheckpointer) -> int | None:
    """The last iteration of a checkpoint of a run; None if it is something else, or broken."""
    try:
        checkpoint = read_checkpoint(
            path, allow_pickle=checkpointer.allow_pickle, path_manager=checkpointer.path_manager
        )
    except CheckpointError:
        return None
    trainer = checkpoint.get("trainer")
    iteration = trainer.get("iteration") if isinstance(trainer, dict) else None
    return iteration if type(iteration) is int else None
