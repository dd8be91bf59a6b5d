"""The schedule of a training: fitted to the images of a step, and told in epochs."""

from detectron2.engine import DefaultTrainer
from tabulate import tabulate

from retina_plugin.core.errors import ConfigError

_PERIODS = [("TEST", "EVAL_PERIOD"), ("TEST", "LOSS_PERIOD"), ("SOLVER", "CHECKPOINT_PERIOD")]


def scale_schedule(cfg, num_processes):
    """Fit learning rate, warm-up, steps, length and periods to the images of a step (in place).

    With ``SOLVER.REFERENCE_WORLD_SIZE`` n, the configuration is one for n processes: as Detectron2 does, the images of
    a process stay, and everything else follows their total. With ``SOLVER.AUTO_SCALE`` n, it is one for n images:
    ``SOLVER.IMS_PER_BATCH`` stays, and everything else follows it. For s times as many images, the learning rate is s
    times as high (the linear rule: Goyal et al. 2017, section 2.1), and all that is counted in steps is s times
    shorter. A configuration that has been scaled says so, and is not scaled again.

    Args:
        cfg: the full configuration.
        num_processes: of the job, on all machines.

    Raises:
        ConfigError: the keys contradict each other, or there is no such schedule.
    """
    solver = cfg.SOLVER
    problems = list(_problems(solver))
    if problems:
        raise ConfigError(problems)
    if solver.REFERENCE_WORLD_SIZE:
        _take(cfg, DefaultTrainer.auto_scale_workers(cfg, num_processes), solver.REFERENCE_WORLD_SIZE / num_processes)
    elif solver.AUTO_SCALE:
        # The same rule, with images in the place of processes.
        images = cfg.clone()
        images.SOLVER.REFERENCE_WORLD_SIZE = images.SOLVER.IMS_PER_BATCH = solver.AUTO_SCALE
        scaled = DefaultTrainer.auto_scale_workers(images, solver.IMS_PER_BATCH)
        _take(cfg, scaled, solver.AUTO_SCALE / solver.IMS_PER_BATCH)
        cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
        cfg.SOLVER.AUTO_SCALE = cfg.SOLVER.IMS_PER_BATCH


def schedule_table(cfg, num_images):
    """The schedule in iterations and epochs, a row for each part.

    Args:
        cfg: the full configuration.
        num_images: of the training sets, those that are trained on.

    Returns:
        str of several lines.
    """
    solver = cfg.SOLVER
    rows = [
        (f"{start} to {end}", f"{_epochs(cfg, start, num_images)} to {_epochs(cfg, end, num_images)}", rate)
        for start, end, rate in _parts(solver)
    ]
    table = tabulate(rows, headers=["iterations", "epochs", "learning rate"], tablefmt="pipe", disable_numparse=True)
    return (
        f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images are "
        f"{_epochs(cfg, solver.MAX_ITER, num_images)} epochs of {num_images} images:\n{table}"
    )


def _problems(solver):
    if solver.AUTO_SCALE < 0:
        yield f"SOLVER.AUTO_SCALE is {solver.AUTO_SCALE}; give the images of a step that the schedule is for, or 0"
    if solver.AUTO_SCALE and solver.REFERENCE_WORLD_SIZE:
        yield (
            f"SOLVER.AUTO_SCALE is {solver.AUTO_SCALE} and SOLVER.REFERENCE_WORLD_SIZE {solver.REFERENCE_WORLD_SIZE}: "
            "both scale the schedule. Set one of them to 0"
        )
    if solver.REFERENCE_WORLD_SIZE < 0:
        yield f"SOLVER.REFERENCE_WORLD_SIZE is {solver.REFERENCE_WORLD_SIZE}; give a number of processes, or 0"
    elif solver.REFERENCE_WORLD_SIZE and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        yield (
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which SOLVER.REFERENCE_WORLD_SIZE "
            f"{solver.REFERENCE_WORLD_SIZE} does not divide: each of its processes takes as many images"
        )
    steps = list(solver.STEPS)
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and (steps != sorted(set(steps)) or solver.MAX_ITER in steps):
        yield (
            f"SOLVER.STEPS is {steps}; steps must increase and be none at SOLVER.MAX_ITER {solver.MAX_ITER}, which is "
            "the end. Later ones do nothing"
        )


def _take(cfg, scaled, longer):
    for section, key in _PERIODS:
        # Detectron2 does not know all of them, and would round a short one to 0, which is none.
        period = cfg[section][key]
        scaled[section][key] = max(round(period * longer), 1) if period > 0 else period
    cfg.SOLVER, cfg.TEST = scaled.SOLVER, scaled.TEST


def _parts(solver):
    """(first iteration, end, learning rate in words), in turn."""
    warmup = min(solver.WARMUP_ITERS, solver.MAX_ITER)
    if warmup > 0:
        start = solver.BASE_LR * solver.WARMUP_FACTOR
        yield 0, warmup, f"warm-up ({solver.WARMUP_METHOD}) from {start:.3g}"
    if warmup == solver.MAX_ITER:
        return
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        yield warmup, solver.MAX_ITER, f"from {solver.BASE_LR:.3g} on by {solver.LR_SCHEDULER_NAME}"
        return
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    bounds = [0, *steps, solver.MAX_ITER]
    for k, (start, end) in enumerate(zip(bounds, bounds[1:])):
        if end > max(start, warmup):
            yield max(start, warmup), end, f"{solver.BASE_LR * solver.GAMMA**k:.3g}"


def _epochs(cfg, iterations, num_images):
    return f"{iterations * cfg.SOLVER.IMS_PER_BATCH / num_images:.3g}"
