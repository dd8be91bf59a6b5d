"""Whether what is to be watched of a training can be: validation loss, best checkpoint, early stopping."""

import json

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from retina_plugin.core.text import did_you_mean
from retina_plugin.data.class_names import class_names

_LOSSES = ("loss_cls", "loss_box_reg", "total_loss")
_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_METRICS = {
    "coco": _COCO,
    "coco_panoptic_seg": _COCO,
    "lvis": (*_COCO, "APr", "APc", "APf"),
    "pascal_voc": ("AP", "AP50", "AP75"),
}


def metric_key_problems(cfg, is_focal_retinanet):
    """Yield a line for each problem of a training's keys.

    Args:
        cfg: the full configuration.
        is_focal_retinanet: whether the detector is ``FocalRetinaNet`` or a subclass.
    """
    yield from _number_problems(cfg)
    yield from _validation_loss_problems(cfg, is_focal_retinanet)
    yield from _metric_problems(cfg)
    yield from _early_stopping_problems(cfg)
    yield from _determinism_problems(cfg)


def _number_problems(cfg):
    for key, value, least, what in [
        ("LOG_PERIOD", cfg.LOG_PERIOD, 1, "a number of iterations"),
        ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_PERIOD, 0, "a number of iterations, or 0 for the end alone"),
        ("TEST.VAL_LOSS_PERIOD", cfg.TEST.VAL_LOSS_PERIOD, 0, "a number of iterations, or 0 for never"),
        ("TEST.EARLY_STOPPING.PATIENCE", cfg.TEST.EARLY_STOPPING.PATIENCE, 0, "a number of evaluations, or 0 for off"),
        ("TEST.EARLY_STOPPING.MIN_DELTA", cfg.TEST.EARLY_STOPPING.MIN_DELTA, 0, "an improvement of the metric"),
        # COCO's list of limits begins with 1 and 10, and is in order.
        ("TEST.AP_DETECTIONS_PER_IMAGE", cfg.TEST.AP_DETECTIONS_PER_IMAGE, 10, "a number of detections"),
    ]:
        if not value >= least:
            yield f"{key} is {value}, but it is {what}: at least {least}"


def _validation_loss_problems(cfg, is_focal_retinanet):
    if cfg.TEST.VAL_LOSS_PERIOD <= 0:
        return
    asked = f"TEST.VAL_LOSS_PERIOD is {cfg.TEST.VAL_LOSS_PERIOD}"
    if not is_focal_retinanet:
        yield f"{asked}, but validation losses are those of FocalRetinaNet, not of {cfg.MODEL.META_ARCHITECTURE}"
    if not cfg.DATASETS.TEST:
        yield f"{asked}, but DATASETS.TEST names no data set"
    for name in cfg.DATASETS.TEST:
        if _has_no_annotations(name):
            yield (
                f"{asked}, but data set '{name}' of DATASETS.TEST has no annotations to compute a loss with. "
                "Set it to 0, or name a set with annotations"
            )


def _has_no_annotations(name):
    # Sets that are no COCO file tell when they are loaded.
    json_file = MetadataCatalog.get(name).get("json_file", None) if name in DatasetCatalog else None
    if json_file is None or not PathManager.isfile(json_file):
        return False
    with PathManager.open(json_file) as file:
        coco = json.load(file)
    return "images" in coco and not coco.get("annotations")


def _metric_problems(cfg):
    metric, mode = cfg.TEST.BEST_CHECKPOINT.METRIC, cfg.TEST.BEST_CHECKPOINT.MODE
    if mode not in ("max", "min"):
        yield f"TEST.BEST_CHECKPOINT.MODE is '{mode}', which is none of max, min.{did_you_mean(mode, ('max', 'min'))}"
    if not metric:
        return
    asked = f"TEST.BEST_CHECKPOINT.METRIC is '{metric}'"
    if not cfg.DATASETS.TEST:
        yield f"{asked}, but DATASETS.TEST names no data set to evaluate"
        return
    of_losses = metric.startswith("validation/")
    if of_losses and cfg.TEST.VAL_LOSS_PERIOD <= 0:
        yield f"{asked}, but TEST.VAL_LOSS_PERIOD is {cfg.TEST.VAL_LOSS_PERIOD}: set it to a number of iterations"
    known = _known_metrics(cfg)
    if known is not None and metric not in known:
        hint = did_you_mean(metric, known)
        shown = ", ".join(name for name in known if "/AP-" not in name)
        yield f"{asked}, which no evaluation gives.{hint} There are: {shown}"
    elif mode == ("max" if of_losses else "min"):
        right = "min" if of_losses else "max"
        what = "a loss is best when it is low" if of_losses else "an AP is best when it is high"
        yield f"{asked} with TEST.BEST_CHECKPOINT.MODE {mode}, but {what}: set the mode to {right}"


def _known_metrics(cfg):
    """Names of all results of evaluations, None where a set's evaluator is none of ours."""
    several, known = len(cfg.DATASETS.TEST) > 1, []
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type", "coco") if name in DatasetCatalog else None
        if kind not in _METRICS:
            return None
        prefix = f"{name}/" if several else ""
        known += [f"{prefix}bbox/{metric}" for metric in _METRICS[kind]]
        known += [f"validation/{prefix}{loss}" for loss in _LOSSES]
        if kind.startswith("coco"):
            known += [f"{prefix}bbox/AP-{c}" for c in class_names(name) or ()]
    return known


def _early_stopping_problems(cfg):
    patience, metric = cfg.TEST.EARLY_STOPPING.PATIENCE, cfg.TEST.BEST_CHECKPOINT.METRIC
    if patience <= 0:
        if cfg.TEST.EARLY_STOPPING.MIN_DELTA > 0:
            yield (
                f"TEST.EARLY_STOPPING.MIN_DELTA is {cfg.TEST.EARLY_STOPPING.MIN_DELTA}, but nothing stops early: "
                f"TEST.EARLY_STOPPING.PATIENCE is {patience}. Set the patience, or remove MIN_DELTA"
            )
        return
    asked = f"TEST.EARLY_STOPPING.PATIENCE is {patience}"
    if not metric:
        yield f"{asked}, but TEST.BEST_CHECKPOINT.METRIC, by which it judges, is empty. Set it, as to 'bbox/AP'"
        return
    key = "VAL_LOSS_PERIOD" if metric.startswith("validation/") else "EVAL_PERIOD"
    period = cfg.TEST[key]
    if period <= 0 and key == "EVAL_PERIOD":  # the other is reported with the metric
        yield f"{asked}, but TEST.EVAL_PERIOD is {period}: there is no evaluation before the end. Set it"


def _determinism_problems(cfg):
    if not cfg.DETERMINISTIC:
        return
    if cfg.SEED < 0:
        yield f"DETERMINISTIC is True, but SEED is {cfg.SEED}, another one in each run. Set SEED to a number from 0 on"
    if cfg.CUDNN_BENCHMARK:
        yield "DETERMINISTIC is True, but CUDNN_BENCHMARK lets cuDNN choose operators anew in each run. Turn one off"
