"""Keeps the results of different runs in different folders."""

import argparse
import contextlib
import re
from pathlib import Path

from detectron2.config import CfgNode

from retina_plugin.core.errors import ConfigError, FileError
from retina_plugin.core.files import refuse_special_file
from retina_plugin.core.previous_run import matching_files, move_to_previous, next_previous
from retina_plugin.engine.arguments import processes_of
from retina_plugin.engine.run_lock import lock_output_dir

# What training writes into OUTPUT_DIR. All other files belong to the user and stay.
_FILES_OF_A_RUN = [
    *("last_checkpoint*", "model_*.pth*", "metrics.json*", "run_state.json*", "config.yaml", "log.txt*"),
    *("events.out.tfevents.*", "inference", "divergence"),
]


def prepare_output_dir(cfg: CfgNode, args: argparse.Namespace) -> contextlib.ExitStack:
    """Lock the folder of a training; refuse it with the results of another run, or move them away.

    Called before the processes are started. The process of rank 0, or the one that starts it, holds the lock. With
    ``--overwrite``, the files of another run are moved into ``OUTPUT_DIR/previous_run_N``.

    Returns:
        A context manager that releases the lock; see :func:`~retina_plugin.engine.run_lock.lock_output_dir`.

    Raises:
        ConfigError: the folder holds another run or cannot be written, a run that is still running has it, or the
            arguments contradict each other.
    """
    if args.overwrite and (args.resume or args.eval_only):
        other = "--resume" if args.resume else "--eval-only"
        raise ConfigError([f"--overwrite and {other} exclude each other: new run, or what is there"])
    folder, is_first = cfg.OUTPUT_DIR, processes_of(args).rank == 0  # other ranks and machines may share the folder
    _require_regular_files(folder)
    if args.eval_only:
        return contextlib.ExitStack()
    held = lock_output_dir(folder) if is_first else contextlib.ExitStack()
    try:
        if not args.resume and _has_run(folder):
            _make_room(folder, args.overwrite, is_first)
    except BaseException:
        held.close()
        raise
    return held


def _require_regular_files(folder: str) -> None:
    """Raise ``ConfigError`` if a name of a run's files is a pipe or a device: opening it could wait for ever."""
    problems = []
    for path in (path for pattern in _FILES_OF_A_RUN for path in matching_files(folder, pattern)):
        try:
            refuse_special_file(path)
        except FileError as error:
            problems.append(f"OUTPUT_DIR {folder}: {error}. Remove it, or choose another OUTPUT_DIR")
    if problems:
        raise ConfigError(problems)


def _make_room(folder: str, overwrite: bool, is_first: bool) -> None:
    if not overwrite:
        raise ConfigError([
            f"OUTPUT_DIR {folder} holds another run ({_describe(folder)}). Go on with it: --resume. Keep it: choose "
            f"another OUTPUT_DIR. Start anew here: --overwrite, which moves its files into {next_previous(folder)}"
        ])  # fmt: skip
    if is_first:
        # last_checkpoint first: if this process is killed midway, the folder does not look like a complete run.
        move_to_previous(folder, _FILES_OF_A_RUN)


def _has_run(folder: str) -> bool:
    return any(matching_files(folder, pattern) for pattern in ("last_checkpoint", "model_*.pth", "metrics.json"))


def _describe(folder: str) -> str:
    checkpoints, last = len(matching_files(folder, "model_*.pth")), _read(folder, "last_checkpoint").strip()[:100]
    number = re.fullmatch(r"model_(\d+)\.pth", last)
    # Only lines that are complete: a process that is killed leaves the beginning of one.
    iterations = re.findall(r'^\{.*"iteration": (\d+)[,}]', _read(folder, "metrics.json"), re.MULTILINE)
    parts = []
    if checkpoints:
        parts.append(f"{checkpoints} checkpoint" + "s" * (checkpoints > 1))
    if last:
        parts.append(f"the last one {last}" + (f", after {int(number[1]) + 1} iterations" if number else ""))
    if iterations:
        parts.append(f"metrics up to iteration {max(map(int, iterations)) + 1}")
    return ", ".join(parts) or "its last_checkpoint or metrics.json"


def _read(folder: str, name: str) -> str:
    path = Path(folder, name)
    try:
        return path.read_text(errors="replace") if path.is_file() else ""
    except OSError as error:
        return f"{name} that cannot be read ({error.strerror})"
