"""Steps whose losses or gradients are not finite: what the user reads of them, and when training ends."""

import glob
import logging
import math
import os
import re
from collections import deque

from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from retina_plugin.core.errors import DivergenceError
from retina_plugin.diagnostics.snapshot import write_recording
from retina_plugin.diagnostics.step_diagnosis import diagnose, image_name

WINDOW = 1000  # iterations in which SOLVER.MAX_NONFINITE_STEPS are allowed
# Of the run, those of the first steps are kept: what comes later is a consequence.
MAX_RECORDINGS = 3  # of a process
MAX_RECORDING_PROCESSES = 2  # of a step
# The learning rate and images of a batch of the paper (section 4.1) and of Base-RetinaNet.yaml.
REFERENCE_LR, REFERENCE_BATCH = 0.01, 16


class DivergenceWatch:
    """Reports steps that were not applied, and ends a training that has too many of them."""

    def __init__(self, cfg):
        self._cfg = cfg
        self._recent = deque()  # iterations

    def report(self, model, step, values, learning_rate):
        """Log what is known of a step that was not applied. To be called on all processes.

        Runs the step again, and leaves no gradients.

        Args:
            model: of the training.
            step: StepSnapshot of this process.
            values: for every process a dict name -> float, its losses and norm of the gradient.
            learning_rate: of the step.

        Raises:
            DivergenceError: there have been too many.
        """
        self._recent.append(step.iteration)
        while self._recent[0] <= step.iteration - WINDOW:
            self._recent.popleft()
        self._log(model, step, values, learning_rate)
        if len(self._recent) > self._cfg.SOLVER.MAX_NONFINITE_STEPS:
            raise DivergenceError(self._last_words())

    def _log(self, model, step, values, learning_rate):
        """Which processes are to blame, each finds out for itself; the main process tells."""
        module = model.module if isinstance(model, DistributedDataParallel) else model
        rank = comm.get_rank()
        try:
            diagnosis, failure = diagnose(module, step), None
        except Exception as error:  # it must not end a training that goes on, nor leave other processes waiting
            diagnosis, failure = None, f"running the step again failed: {type(error).__name__}: {error}"
        finally:
            module.zero_grad()
        own = [x for name, x in values[rank].items() if name != "grad_norm"]
        blamed = not all(map(math.isfinite, own)) or (diagnosis is not None and not diagnosis.is_finite)
        ranks = [i for i, is_blamed in enumerate(comm.all_gather(blamed)) if is_blamed] or list(range(len(values)))
        lines = None
        if rank in ranks:
            lines = [failure] if diagnosis is None else describe(diagnosis, step)
            if rank in ranks[:MAX_RECORDING_PROCESSES]:
                lines.append(self._record(module, step, values[rank], learning_rate))
        reports = comm.gather(lines)
        if comm.is_main_process():
            logging.getLogger(__name__).warning(
                "The step of iteration %d was not applied: %s, at a learning rate of %g. %s\n%s",
                step.iteration,
                " and ".join(_what_is_not_finite(values[i], f" on process {i}" * (len(values) > 1)) for i in ranks[:4]),
                learning_rate,
                self._how_many(),
                "\n".join(f"  {f'process {i}: ' * (len(values) > 1)}{line}" for i in ranks[:4] for line in reports[i]),
            )

    def _record(self, module, step, values, learning_rate):
        folder = os.path.join(self._cfg.OUTPUT_DIR, "divergence")
        rank = comm.get_rank()
        if "://" in folder:
            return f"not saved: {folder} is no folder of this machine"
        if len(glob.glob(os.path.join(glob.escape(folder), f"iteration_*_rank_{rank}.pth"))) >= MAX_RECORDINGS:
            return f"not saved: {folder} has {MAX_RECORDINGS} steps of this process already"
        path = os.path.join(folder, f"iteration_{step.iteration}_rank_{rank}.pth")
        more = {"values": values, "learning_rate": learning_rate, "rank": rank, "num_processes": comm.get_world_size()}
        try:
            write_recording(path, step, module, self._cfg.dump(), **more)
        except OSError as error:
            return f"not saved: {path}: {error.strerror}"
        return f"saved for: python -m retina_plugin replay {path}"

    def _how_many(self):
        allowed = self._cfg.SOLVER.MAX_NONFINITE_STEPS
        return (
            f"Such steps in the last {WINDOW} iterations: {len(self._recent)}; training stops after more than "
            f"{allowed} (SOLVER.MAX_NONFINITE_STEPS)."
        )

    def _last_words(self):
        cfg, first = self._cfg, self._recent[0]
        batch = cfg.SOLVER.IMS_PER_BATCH
        recordings = sorted(glob.glob(os.path.join(glob.escape(cfg.OUTPUT_DIR), "divergence", "*.pth")), key=_iteration)
        recordings = [path for path in recordings if _iteration(path) >= first] or recordings
        lines = [
            f"training diverged: losses or gradients of {len(self._recent)} steps among the last {WINDOW} iterations "
            f"were not finite, since iteration {first}; SOLVER.MAX_NONFINITE_STEPS allows "
            f"{cfg.SOLVER.MAX_NONFINITE_STEPS}. None of them was applied",
            last_good_checkpoint(cfg.OUTPUT_DIR, first),
        ]
        if recordings:
            lines.append(f"look at the first of them: python -m retina_plugin replay {recordings[0]}")
        return "\n".join([
            *lines,
            "usual causes, the most frequent first:",
            f"  1. the learning rate: SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR:g}; for SOLVER.IMS_PER_BATCH {batch} the "
            f"linear rule gives {REFERENCE_LR:g} * {batch} / {REFERENCE_BATCH} = "
            f"{REFERENCE_LR * batch / REFERENCE_BATCH:g}",
            f"  2. the warm-up: SOLVER.WARMUP_ITERS is {cfg.SOLVER.WARMUP_ITERS}; make it longer",
            "  3. degenerate or wrong boxes: python -m retina_plugin check-data",
            f"  4. pixel statistics that are not those of the weights: MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, "
            f"MODEL.PIXEL_STD {list(cfg.MODEL.PIXEL_STD)}",
            *[
                f"  5. half precision: SOLVER.AMP.PRECISION is {cfg.SOLVER.AMP.PRECISION}; try SOLVER.AMP.ENABLED False"
            ][: cfg.SOLVER.AMP.ENABLED],
            "SOLVER.CLIP_GRADIENTS bounds what a single batch can do; grad_norm in the log shows its usual size",
        ])  # fmt: skip


def describe(diagnosis, step):
    """What a diagnosis says of a step, as lines."""
    more = f" and {len(step.batch) - 8} more" if len(step.batch) > 8 else ""
    lines = ["images: " + ", ".join(map(image_name, step.batch[:8])) + more]
    lines += [f"input: {line}" for line in diagnosis.bad_inputs[:5]]
    if diagnosis.bad_weights:
        lines.append(f"weights that are not finite already: {_some(diagnosis.bad_weights)}")
    if diagnosis.first_module is not None:
        lines.append(f"first module whose result is not finite: {diagnosis.first_module}")
    if diagnosis.num_positives is not None:
        lines.append(f"positive anchors: {diagnosis.num_positives}")
    for what, by_level in (("logit", diagnosis.logits), ("predicted box delta", diagnosis.deltas)):
        finite = {level: extremes for level, extremes in by_level.items() if extremes.largest is not None}
        if finite:
            level, extremes = max(finite.items(), key=lambda item: item[1].largest)
            of_class = f", class {extremes.class_id}" if what == "logit" else ""
            lines.append(f"largest {what}: {extremes.largest:.3g} (level {level}{of_class})")
        elif by_level:
            lines.append(f"largest {what}: none is finite")
    if diagnosis.largest_target is not None:
        lines.append(f"largest box target: {diagnosis.largest_target:.3g}")
    if diagnosis.bad_gradients:
        number = f"{len(diagnosis.bad_gradients)} of {len(diagnosis.grad_norms)}"
        nearest = diagnosis.bad_gradients[::-1]  # to the losses, where a gradient comes from
        lines.append(f"gradients that are not finite: {number} parameters: {_some(nearest)}")
    if diagnosis.is_finite:
        lines.append("run again, the step is finite")
    return lines


def last_good_checkpoint(output_dir, iteration):
    """A sentence that names the newest checkpoint of before an iteration."""
    paths = glob.glob(os.path.join(glob.escape(output_dir), "model_*.pth"))
    paths = [path for path in paths if 0 <= _iteration(path) < iteration]
    if not paths:
        return (
            f"there is no checkpoint of before iteration {iteration} in {output_dir}: start again, from MODEL.WEIGHTS"
        )
    return f"last good checkpoint: {max(paths, key=_iteration)}"


def _iteration(path):
    number = re.search(r"_(\d+)(_rank_\d+)?\.pth$", path)
    return int(number[1]) if number else -1


def _what_is_not_finite(values, where):
    bad = [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]
    return ", ".join(bad) + where if bad else "the gradient is not finite" + where


def _some(names):
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _without_traceback(record):
    # Detectron2's loop logs every exception with its traceback. This one is no defect of the program.
    if record.exc_info and isinstance(record.exc_info[1], DivergenceError):
        record.exc_info, record.msg, record.args = None, "Training stops: it diverged.", ()
    return True


logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)
