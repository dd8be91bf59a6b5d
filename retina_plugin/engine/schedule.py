"""Scales the schedule with the batch size, and shows it in epochs."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from tabulate import tabulate

from retina_plugin.core.errors import ConfigError

_PERIODS = [("TEST", "EVAL_PERIOD"), ("TEST", "VAL_LOSS_PERIOD"), ("SOLVER", "CHECKPOINT_PERIOD")]


def scale_schedule(cfg: CfgNode, num_processes: int) -> None:
    """Scale learning rate, warm-up, steps, length and periods to the batch size (in place).

    With ``SOLVER.REFERENCE_WORLD_SIZE`` n, the configuration is written for n processes. As in Detectron2, the images
    per process stay, and the batch size is scaled as well. With ``SOLVER.REFERENCE_BATCH_SIZE`` n, the configuration
    is written for n images per step, and ``SOLVER.IMS_PER_BATCH`` stays. For s times the batch size, the learning rate
    is multiplied by s (the linear rule: Goyal et al. 2017, section 2.1), and numbers of iterations are divided by s.
    Afterwards the reference keys describe the scaled configuration: scaling again changes nothing.

    Raises:
        ConfigError: the keys contradict each other, or the schedule is invalid.
    """
    solver = cfg.SOLVER
    if problems := list(schedule_problems(cfg)):
        raise ConfigError(problems)
    if solver.REFERENCE_WORLD_SIZE:
        factor = solver.REFERENCE_WORLD_SIZE / num_processes
        _take_schedule(cfg, DefaultTrainer.auto_scale_workers(cfg, num_processes), factor)
    elif solver.REFERENCE_BATCH_SIZE:
        # Detectron2's rule, with images instead of processes.
        images = cfg.clone()
        images.SOLVER.REFERENCE_WORLD_SIZE = images.SOLVER.IMS_PER_BATCH = solver.REFERENCE_BATCH_SIZE
        scaled = DefaultTrainer.auto_scale_workers(images, solver.IMS_PER_BATCH)
        _take_schedule(cfg, scaled, solver.REFERENCE_BATCH_SIZE / solver.IMS_PER_BATCH)
        cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
        cfg.SOLVER.REFERENCE_BATCH_SIZE = cfg.SOLVER.IMS_PER_BATCH


def schedule_table(cfg: CfgNode, num_images: int) -> str:
    """Format the schedule for an epoch of ``num_images`` as a table of learning rates by iterations and epochs."""
    solver = cfg.SOLVER
    rows = [
        (f"{start} to {end}", f"{_epochs(cfg, start, num_images)} to {_epochs(cfg, end, num_images)}", rate)
        for start, end, rate in _learning_rates(solver)
    ]
    table = tabulate(rows, headers=["iterations", "epochs", "learning rate"], tablefmt="pipe", disable_numparse=True)
    return (
        f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images are "
        f"{_epochs(cfg, solver.MAX_ITER, num_images)} epochs of {num_images} images:\n{table}"
    )


def schedule_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each problem with the keys that :func:`scale_schedule` reads."""
    solver = cfg.SOLVER
    batch_size, world_size, steps = solver.REFERENCE_BATCH_SIZE, solver.REFERENCE_WORLD_SIZE, list(solver.STEPS)
    if batch_size and solver.IMS_PER_BATCH < 1:
        yield f"SOLVER.REFERENCE_BATCH_SIZE is {batch_size}, but SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}"
    if batch_size < 0:
        yield f"SOLVER.REFERENCE_BATCH_SIZE is {batch_size}; give the images per step of the schedule, or 0"
    if batch_size and world_size:
        yield (
            f"SOLVER.REFERENCE_BATCH_SIZE is {batch_size} and SOLVER.REFERENCE_WORLD_SIZE {world_size}: both scale the "
            "schedule. Set one of them to 0"
        )
    if world_size < 0:
        yield f"SOLVER.REFERENCE_WORLD_SIZE is {world_size}; give a number of processes, or 0"
    elif world_size and solver.IMS_PER_BATCH % world_size:
        yield (
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which SOLVER.REFERENCE_WORLD_SIZE {world_size} does not "
            "divide: every process takes the same number of images"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and (steps != sorted(set(steps)) or solver.MAX_ITER in steps):
        yield (
            f"SOLVER.STEPS is {steps}; steps must increase, and none may equal SOLVER.MAX_ITER {solver.MAX_ITER}. "
            "Steps after the end have no effect"
        )


def _take_schedule(cfg: CfgNode, scaled: CfgNode, factor: float) -> None:
    for section, key in _PERIODS:
        # Detectron2 scales only some periods, and rounds a short one to 0, which means never.
        period = cfg[section][key]
        scaled[section][key] = max(round(period * factor), 1) if period > 0 else period
    cfg.SOLVER, cfg.TEST = scaled.SOLVER, scaled.TEST


def _learning_rates(solver: CfgNode) -> Iterator[tuple[int, int, str]]:
    """Yields (first iteration, end, learning rate in words), in order."""
    warmup = min(solver.WARMUP_ITERS, solver.MAX_ITER)
    if warmup > 0:
        yield 0, warmup, f"warm-up ({solver.WARMUP_METHOD}) from {solver.BASE_LR * solver.WARMUP_FACTOR:.3g}"
    if warmup == solver.MAX_ITER:
        return
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        yield warmup, solver.MAX_ITER, f"from {solver.BASE_LR:.3g} on by {solver.LR_SCHEDULER_NAME}"
        return
    bounds = [0, *(step for step in solver.STEPS if step <= solver.MAX_ITER), solver.MAX_ITER]
    for k, (start, end) in enumerate(zip(bounds, bounds[1:])):
        if end > max(start, warmup):
            yield max(start, warmup), end, f"{solver.BASE_LR * solver.GAMMA**k:.3g}"


def _epochs(cfg: CfgNode, iterations: int, num_images: int) -> str:
    return f"{iterations * cfg.SOLVER.IMS_PER_BATCH / num_images:.3g}"
