"""Going on with a run: what it left, whether it is the same run, and its files of metrics."""

import json
import logging
import os
import re

import yaml
from detectron2.utils.events import JSONWriter
from detectron2.utils.file_io import PathManager

from retina_plugin.checkpoint import CheckpointError
from retina_plugin.checkpoint.reader import read_checkpoint
from retina_plugin.config import flatten
from retina_plugin.core.files import atomic_write

# What may change without changing what the training computes, or that the checkpoint decides.
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
HISTORY = 20  # the values of a metric that Detectron2's writers take the median of


def find_checkpoint(checkpointer):
    """The checkpoint that a run goes on from.

    Args:
        checkpointer: the run's.

    Returns:
        str: its path, or None where the run's folder has none.

    Raises:
        CheckpointError: there are some, but nothing says which is the last.
    """
    if checkpointer.has_checkpoint():
        return checkpointer.get_checkpoint_file()
    if _checkpoints(checkpointer.save_dir):
        problem = f"--resume: {checkpointer.save_dir} has checkpoints, but no file last_checkpoint that names one"
        raise CheckpointError(f"{problem}\n{_way_out(checkpointer)}")
    return None


def explain(error, checkpointer):
    """The error of loading the last checkpoint, with the newest one that can be used if it is missing or broken."""
    try:
        read_checkpoint(checkpointer.get_checkpoint_file(), allow_pickle=checkpointer.allow_pickle)
    except CheckpointError:
        named = f"--resume: last_checkpoint of {checkpointer.save_dir} names a file that cannot be used"
        return CheckpointError(f"{named}: {error}\n{_way_out(checkpointer)}")
    return error


def _checkpoints(folder):
    if not PathManager.isdir(folder):
        return []
    paths = [os.path.join(folder, name) for name in PathManager.ls(folder) if re.fullmatch(r"model_.*\.pth", name)]
    return paths if "://" in folder else sorted(paths, key=os.path.getmtime, reverse=True)


def _way_out(checkpointer):
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


def warn_of_differences(saved, cfg):
    """Warn of keys that change what a resumed run computes.

    Args:
        saved: the YAML of the configuration with which the checkpoint was made.
        cfg: the configuration now.
    """
    before, now = (dict(flatten(yaml.safe_load(text))) for text in (saved, cfg.dump()))
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


def metrics_state(storage):
    """What the writers of metrics need of the past, as plain numbers."""
    hints = storage.smoothing_hints()
    return {
        name: {"smoothing_hint": bool(hints[name]), "values": [list(pair) for pair in history.values()[-HISTORY:]]}
        for name, history in storage.histories().items()
    }


def restore_metrics(storage, state):
    """Put the past of :func:`metrics_state` into an empty storage."""
    now = storage.iter
    for name, metric in state.items():
        for value, iteration in metric["values"]:
            storage.iter = iteration
            storage.put_scalar(name, value, smoothing_hint=metric["smoothing_hint"])
    storage.iter = now


def cut_metrics(writer, start_iter):
    """Remove from a file of metrics what a resumed run is going to write again.

    Args:
        writer: a ``JSONWriter`` of the run, which has just been made. Other writers keep no file that can be cut.
        start_iter: the first iteration that is written again.
    """
    if not isinstance(writer, JSONWriter):
        return
    path = writer._file_handle.name
    with open(path, "rb") as file:
        lines = [(line, _iteration(line)) for line in file]
    kept = [(line, iteration) for line, iteration in lines if iteration is not None and iteration < start_iter]
    if len(kept) < len(lines):
        writer.close()  # it appends to the file that is replaced now
        atomic_write(path, lambda file: file.writelines(line for line, _ in kept))
        writer._file_handle = PathManager.open(path, "a")
    # It writes what it takes for new; the restored past is not.
    writer._last_write = max((iteration for _, iteration in kept), default=-1)


def _iteration(line):
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):  # cut off when the run was killed
        return None
