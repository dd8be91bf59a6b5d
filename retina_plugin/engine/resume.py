"""Resuming a run: which checkpoint, whether the configuration is the same, and the metrics before it."""

import logging
import os
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer
from retina_plugin.checkpoint.reader import read_checkpoint
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
        CheckpointError: the folder has checkpoints, but no file ``last_checkpoint``.
    """
    if checkpointer.has_checkpoint():
        return checkpointer.get_checkpoint_file()
    if _checkpoints(checkpointer.save_dir):
        problem = f"--resume: {checkpointer.save_dir} has checkpoints, but no file last_checkpoint that names one"
        raise CheckpointError(f"{problem}\n{_way_out(checkpointer)}")
    return None


def explain(error: CheckpointError, checkpointer: RetinaCheckpointer) -> CheckpointError:
    """Add the newest usable checkpoint to the error of loading the last one, if that is missing or broken."""
    try:
        read_checkpoint(checkpointer.get_checkpoint_file(), allow_pickle=checkpointer.allow_pickle)
    except CheckpointError:
        named = f"--resume: last_checkpoint of {checkpointer.save_dir} names a file that cannot be used"
        return CheckpointError(f"{named}: {error}\n{_way_out(checkpointer)}")
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


def _checkpoints(folder: str) -> list[str]:
    if not PathManager.isdir(folder):
        return []
    paths = [os.path.join(folder, name) for name in PathManager.ls(folder) if re.fullmatch(r"model_.*\.pth", name)]
    return paths if "://" in folder else sorted(paths, key=os.path.getmtime, reverse=True)


def _way_out(checkpointer: RetinaCheckpointer) -> str:
    for path in _checkpoints(checkpointer.save_dir):
        try:
            checkpoint = read_checkpoint(path, allow_pickle=checkpointer.allow_pickle)
        except CheckpointError:
            continue
        if "trainer" in checkpoint:
            last = os.path.join(checkpointer.save_dir, "last_checkpoint")
            return (
                f"The newest whole checkpoint there is {os.path.basename(path)}, after "
                f"{checkpoint['trainer']['iteration'] + 1} iterations. To resume from it:\n"
                f"  printf %s {os.path.basename(path)} > {last}"
            )
    return "There is no whole checkpoint of a run in the folder. Start a new run: --overwrite, without --resume"
