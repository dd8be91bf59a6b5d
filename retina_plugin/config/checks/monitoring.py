"""Checks of the keys that say what of a training is logged, evaluated and watched."""

from collections.abc import Iterator

from detectron2.config import CfgNode

from retina_plugin.config.checks.model import builds_focal_retinanet
from retina_plugin.core.text import did_you_mean


def monitoring_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each problem with validation losses, the best checkpoint and early stopping."""
    test = cfg.TEST
    if test.VAL_LOSS_PERIOD > 0:
        asked = f"TEST.VAL_LOSS_PERIOD is {test.VAL_LOSS_PERIOD}"
        if not builds_focal_retinanet(cfg):
            yield f"{asked}, but validation losses are those of FocalRetinaNet, not of {cfg.MODEL.META_ARCHITECTURE}"
        if not cfg.DATASETS.TEST:
            yield f"{asked}, but DATASETS.TEST names no data set"
    yield from _best_checkpoint_problems(cfg)
    yield from _early_stopping_problems(cfg)


def _best_checkpoint_problems(cfg: CfgNode) -> Iterator[str]:
    metric, mode, period = cfg.TEST.BEST_CHECKPOINT.METRIC, cfg.TEST.BEST_CHECKPOINT.MODE, cfg.TEST.VAL_LOSS_PERIOD
    if mode not in ("max", "min"):
        yield f"TEST.BEST_CHECKPOINT.MODE is '{mode}', which is none of max, min.{did_you_mean(mode, ('max', 'min'))}"
    if not metric:
        return
    asked = f"TEST.BEST_CHECKPOINT.METRIC is '{metric}'"
    if not cfg.DATASETS.TEST:
        yield f"{asked}, but DATASETS.TEST names no data set to evaluate"
    elif metric.startswith("validation/") and period <= 0:
        yield f"{asked}, but TEST.VAL_LOSS_PERIOD is {period}: set it to a number of iterations"


def _early_stopping_problems(cfg: CfgNode) -> Iterator[str]:
    patience, min_delta = cfg.TEST.EARLY_STOPPING.PATIENCE, cfg.TEST.EARLY_STOPPING.MIN_DELTA
    metric, period = cfg.TEST.BEST_CHECKPOINT.METRIC, cfg.TEST.EVAL_PERIOD
    asked = f"TEST.EARLY_STOPPING.PATIENCE is {patience}"
    if patience <= 0 and min_delta > 0:
        yield (
            f"TEST.EARLY_STOPPING.MIN_DELTA is {min_delta}, but nothing stops early: {asked}. Set the patience, or "
            "remove MIN_DELTA"
        )
    elif patience > 0 and not metric:
        yield f"{asked}, but TEST.BEST_CHECKPOINT.METRIC, by which it judges, is empty. Set it, as to 'bbox/AP'"
    elif patience > 0 and period <= 0 and not metric.startswith("validation/"):
        yield f"{asked}, but TEST.EVAL_PERIOD is {period}: there is no evaluation before the end. Set it"
