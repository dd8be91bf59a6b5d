"""Reports steps whose losses, gradients or buffers are not finite, and ends a training that has too many of them."""

import glob
import logging
import math
import os
import re
from collections import deque

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from retina_plugin.core.errors import DivergenceError
from retina_plugin.core.text import list_some
from retina_plugin.diagnostics.snapshot import StepSnapshot, write_snapshot
from retina_plugin.diagnostics.step_diagnosis import diagnose_step

WINDOW = 1000  # iterations in which SOLVER.MAX_NONFINITE_STEPS are allowed
# Snapshots of the first bad steps are kept: what comes later is a consequence.
MAX_SNAPSHOTS = 3  # of a rank
MAX_SNAPSHOT_RANKS = 2  # of a step
_MOST_RANKS = 4  # in a report
# The name of a count among the losses of a step.
NONFINITE_BUFFER_VALUES = "nonfinite_buffer_values"
# Learning rate and images of a batch of the paper (section 4.1) and of Base-RetinaNet.yaml.
REFERENCE_LR, REFERENCE_BATCH = 0.01, 16


class DivergenceMonitor:
    """Reports steps that were not applied, and counts them.

    Args:
        cfg: the configuration of the run.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg
        self._recent: deque[int] = deque()  # iterations

    def report(
        self, model: nn.Module, step: StepSnapshot, values: list[dict[str, float]], learning_rate: float
    ) -> None:
        """Log what is known of a step that was not applied. All ranks must call this.

        Runs the step again, and leaves no gradients.

        Args:
            model: of the training, not within ``DistributedDataParallel``.
            step: of this rank.
            values: for every rank its losses, its norm of the gradient, and how many values of buffers the step made
                infinite or NaN, by name.
            learning_rate: of the step.

        Raises:
            DivergenceError: there have been too many.
        """
        self._recent.append(step.iteration)
        while self._recent[0] <= step.iteration - WINDOW:
            self._recent.popleft()
        self._log(model, step, values, learning_rate)
        if len(self._recent) > self._cfg.SOLVER.MAX_NONFINITE_STEPS:
            raise DivergenceError(self._final_message())

    def _log(self, model: nn.Module, step: StepSnapshot, values: list[dict[str, float]], learning_rate: float) -> None:
        # Every rank finds out whether it is to blame; the main rank tells.
        rank = comm.get_rank()
        lines, is_finite = _diagnose_safely(model, step)
        own = [x for name, x in values[rank].items() if name != "grad_norm"]
        has_bad_buffers = values[rank][NONFINITE_BUFFER_VALUES] > 0
        blamed = comm.all_gather(not all(map(math.isfinite, own)) or has_bad_buffers or is_finite is False)
        ranks = [i for i, is_blamed in enumerate(blamed) if is_blamed] or list(range(len(values)))
        if rank in ranks[:MAX_SNAPSHOT_RANKS]:
            lines.append(self._write_snapshot(model, step, values[rank], learning_rate))
        reports = comm.gather(lines if rank in ranks else None)
        if not comm.is_main_process():
            return
        several, shown = len(values) > 1, ranks[:_MOST_RANKS]
        what = " and ".join(_what_is_not_finite(values[i]) + f" on rank {i}" * several for i in shown)
        logging.getLogger(__name__).warning(
            "The step of iteration %d was not applied: %s, at a learning rate of %g. Such steps in the last %d "
            "iterations: %d; training stops after more than %d (SOLVER.MAX_NONFINITE_STEPS).\n%s",
            *(step.iteration, what, learning_rate, WINDOW, len(self._recent)),
            self._cfg.SOLVER.MAX_NONFINITE_STEPS,
            "\n".join(f"  {f'rank {i}: ' * several}{line}" for i in shown for line in reports[i]),
        )

    def _write_snapshot(
        self, model: nn.Module, step: StepSnapshot, values: dict[str, float], learning_rate: float
    ) -> str:
        folder, rank = os.path.join(self._cfg.OUTPUT_DIR, "divergence"), comm.get_rank()
        if "://" in folder:
            return f"not saved: {folder} is no folder of this machine"
        if len(glob.glob(os.path.join(glob.escape(folder), f"iteration_*_rank_{rank}.pth"))) >= MAX_SNAPSHOTS:
            return f"not saved: {folder} has {MAX_SNAPSHOTS} steps of this rank already"
        path = os.path.join(folder, f"iteration_{step.iteration}_rank_{rank}.pth")
        more = {"values": values, "learning_rate": learning_rate, "rank": rank, "num_processes": comm.get_world_size()}
        try:
            write_snapshot(path, step, model, self._cfg.dump(), **more)
        except OSError as error:
            return f"not saved: {path}: {error.strerror}"
        return f"saved for: python -m retina_plugin replay {path}"

    def _final_message(self) -> str:
        cfg, first = self._cfg, self._recent[0]
        batch = cfg.SOLVER.IMS_PER_BATCH
        paths = sorted(glob.glob(os.path.join(glob.escape(cfg.OUTPUT_DIR), "divergence", "*.pth")), key=_iteration)
        paths = [path for path in paths if _iteration(path) >= first] or paths
        causes = [
            f"the learning rate: SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR:g}; for SOLVER.IMS_PER_BATCH {batch} the linear "
            f"rule gives {REFERENCE_LR:g} * {batch} / {REFERENCE_BATCH} = {REFERENCE_LR * batch / REFERENCE_BATCH:g}",
            f"the warm-up: SOLVER.WARMUP_ITERS is {cfg.SOLVER.WARMUP_ITERS}; make it longer",
            "degenerate or wrong boxes: python -m retina_plugin check-data",
            f"pixel statistics that are not those of the weights: MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, "
            f"MODEL.PIXEL_STD {list(cfg.MODEL.PIXEL_STD)}",
        ]
        if cfg.SOLVER.AMP.ENABLED:
            causes.append(
                f"half precision: SOLVER.AMP.PRECISION is {cfg.SOLVER.AMP.PRECISION}; try SOLVER.AMP.ENABLED False"
            )
        return "\n".join([
            f"training diverged: losses, gradients or buffers of {len(self._recent)} steps among the last {WINDOW} "
            f"iterations were not finite, since iteration {first}; SOLVER.MAX_NONFINITE_STEPS allows "
            f"{cfg.SOLVER.MAX_NONFINITE_STEPS}. None of them was applied",
            last_good_checkpoint(cfg.OUTPUT_DIR, first),
            *[f"look at the first of them: python -m retina_plugin replay {path}" for path in paths[:1]],
            "usual causes, the most frequent first:",
            *[f"  {number}. {cause}" for number, cause in enumerate(causes, start=1)],
            "SOLVER.CLIP_GRADIENTS bounds what a single batch can do; grad_norm in the log shows its usual size",
        ])  # fmt: skip


def warn_of_bad_buffers(model: nn.Module) -> None:
    """Log a line if buffers are inf or NaN before training, such as statistics in a checkpoint of a run that diverged.

    Training would look healthy with them, as a norm does not use its statistics. A value of -inf is that of a mask.
    """
    bad = [name for name, b in model.named_buffers() if b.is_floating_point() and not (b.double() < math.inf).all()]
    if bad:
        logging.getLogger(__name__).warning(
            "Buffers of the model have values that are inf or NaN before the first step: %s. Evaluation will use them; "
            "start from weights that are finite.",
            list_some(bad, 4),
        )


def last_good_checkpoint(output_dir: str, iteration: int) -> str:
    """A sentence that names the newest checkpoint from before an iteration."""
    paths = glob.glob(os.path.join(glob.escape(output_dir), "model_*.pth"))
    paths = [path for path in paths if 0 <= _iteration(path) < iteration]
    if not paths:
        return (
            f"there is no checkpoint from before iteration {iteration} in {output_dir}: start again, from MODEL.WEIGHTS"
        )
    return f"last good checkpoint: {max(paths, key=_iteration)}"


def _diagnose_safely(model: nn.Module, step: StepSnapshot) -> tuple[list[str], bool | None]:
    """Lines about a step, and whether it was finite when run again; None if that failed."""
    try:
        diagnosis = diagnose_step(model, step)
        return diagnosis.describe(step), diagnosis.is_finite
    except Exception as error:  # it must not end a training that goes on, nor leave other ranks waiting
        return [f"running the step again failed: {type(error).__name__}: {error}"], None
    finally:
        model.zero_grad()


def _iteration(path: str) -> int:
    number = re.search(r"_(\d+)(_rank_\d+)?\.pth$", path)
    return int(number[1]) if number else -1


def _what_is_not_finite(values: dict[str, float]) -> str:
    found = [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]
    if number := values[NONFINITE_BUFFER_VALUES]:
        found.append(f"{number:.0f} values of buffers are not finite")
    return ", ".join(found) or "the gradient is not finite"
