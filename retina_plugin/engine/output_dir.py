"""A folder has the results of one run: an old one is not mixed with a new one, and not deleted either."""

import glob
import json
import os
import re

from retina_plugin.core.errors import ConfigError
from retina_plugin.engine.arguments import processes_of

_PREVIOUS = "previous_run_"
# What a training writes into OUTPUT_DIR. The rest belongs to somebody else and stays where it is.
_OF_A_RUN = (
    *("last_checkpoint*", "model_*.pth*", "metrics.json*", "config.yaml", "log.txt*", "events.out.tfevents.*"),
    *("inference", "divergence"),
)


def prepare_output_dir(cfg, args):
    """Make sure that a new run does not end up in another run's folder. Called before the processes of a job meet.

    Args:
        cfg: the configuration; ``OUTPUT_DIR`` is the folder.
        args: of :func:`~retina_plugin.engine.arguments.argument_parser`. ``--overwrite`` moves the files of another run
            into the subfolder ``previous_run_N``.

    Raises:
        ConfigError: there is another run in the folder, or the arguments contradict each other.
    """
    if args.overwrite and (args.resume or args.eval_only):
        other = "--resume" if args.resume else "--eval-only"
        raise ConfigError([f"--overwrite and {other} exclude each other: new run, or what is there"])
    folder = cfg.OUTPUT_DIR
    if args.resume or args.eval_only or not _has_run(folder):
        return
    if not args.overwrite:
        raise ConfigError([
            f"OUTPUT_DIR {folder} holds another run ({_describe(folder)}). Go on with it: --resume. Keep it: choose "
            f"another OUTPUT_DIR. Start anew here: --overwrite, which moves its files into {_next_previous(folder)}"
        ])  # fmt: skip
    if processes_of(args).is_first:  # the others may see the folder as well
        _move_away(folder)


def _has_run(folder):
    return any(_matches(folder, pattern) for pattern in ("last_checkpoint", "model_*.pth", "metrics.json"))


def _matches(folder, pattern):
    return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def _describe(folder):
    parts = []
    checkpoints = _matches(folder, "model_*.pth")
    if checkpoints:
        parts.append(f"{len(checkpoints)} checkpoint" + "s" * (len(checkpoints) > 1))
    last = _last_checkpoint(folder)
    if last is not None:
        parts.append(f"the last one {last}")
    iteration = _last_metrics(folder)
    if iteration is not None:
        parts.append(f"metrics up to iteration {iteration + 1}")
    return ", ".join(parts) or "its last_checkpoint or metrics.json"


def _last_checkpoint(folder):
    try:
        with open(os.path.join(folder, "last_checkpoint")) as file:
            name = file.read().strip()
    except OSError:
        return None
    number = re.fullmatch(r"model_(\d+)\.pth", name)
    return f"{name}, after {int(number[1]) + 1} iterations" if number else name


def _last_metrics(folder):
    last = None
    try:
        with open(os.path.join(folder, "metrics.json"), errors="replace") as file:
            for line in file:
                try:
                    last = max(json.loads(line)["iteration"], last or 0)
                except (ValueError, KeyError, TypeError):  # of a process that was killed
                    continue
    except OSError:
        pass
    return last


def _next_previous(folder):
    numbers = [re.fullmatch(rf"{_PREVIOUS}(\d+)", os.path.basename(path)) for path in _matches(folder, f"{_PREVIOUS}*")]
    return f"{_PREVIOUS}{max((int(number[1]) for number in numbers if number), default=0) + 1}"


def _move_away(folder):
    target = os.path.join(folder, _next_previous(folder))
    os.mkdir(target)
    # In this order, last_checkpoint first: a process killed on the way leaves nothing that looks like a whole run.
    for pattern in _OF_A_RUN:
        for path in _matches(folder, pattern):
            os.rename(path, os.path.join(target, os.path.basename(path)))
