"""Checks of what is evaluated and by which metric, before a job starts."""

import importlib.util
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from retina_plugin.core.text import did_you_mean
from retina_plugin.data.class_names import class_names
from retina_plugin.data.coco_summary import read_coco_summary
from retina_plugin.evaluation.build import BOX_EVALUATOR_TYPES

_LOSSES = ("loss_cls", "loss_box_reg", "total_loss")
_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_METRICS = {
    "coco": _COCO,
    "coco_panoptic_seg": _COCO,
    "lvis": (*_COCO, "APr", "APc", "APf"),
    "pascal_voc": ("AP", "AP50", "AP75"),
}


def evaluator_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each test set whose evaluator does not judge boxes or is not installed."""
    for name in cfg.DATASETS.TEST:
        kind = _evaluator_type(name) or "coco"
        if kind not in BOX_EVALUATOR_TYPES:
            yield (
                f"data set '{name}' of DATASETS.TEST has evaluator type '{kind}', but boxes are judged by "
                f"{', '.join(BOX_EVALUATOR_TYPES)}"
            )
        if kind == "lvis" and importlib.util.find_spec("lvis") is None:
            yield (
                f"data set '{name}' of DATASETS.TEST is evaluated by the package lvis, which is not installed: "
                "pip install lvis"
            )


def metric_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each validation loss and metric that the test sets cannot give."""
    metric, mode = cfg.TEST.BEST_CHECKPOINT.METRIC, cfg.TEST.BEST_CHECKPOINT.MODE
    for name in cfg.DATASETS.TEST if cfg.TEST.VAL_LOSS_PERIOD > 0 else ():
        if _has_no_annotations(name):
            yield (
                f"TEST.VAL_LOSS_PERIOD is {cfg.TEST.VAL_LOSS_PERIOD}, but data set '{name}' of DATASETS.TEST has no "
                "annotations to compute a loss with. Set it to 0, or name a set with annotations"
            )
    if not metric or not cfg.DATASETS.TEST:
        return
    asked, known, is_loss = f"TEST.BEST_CHECKPOINT.METRIC is '{metric}'", _known_metrics(cfg), "validation/" in metric
    if known is not None and metric not in known:
        shown = ", ".join(name for name in known if "/AP-" not in name)
        yield f"{asked}, which no evaluation gives.{did_you_mean(metric, known)} There are: {shown}"
    elif mode == ("max" if is_loss else "min"):
        right, what = ("min", "a loss is best when it is low") if is_loss else ("max", "an AP is best when it is high")
        yield f"{asked} with TEST.BEST_CHECKPOINT.MODE {mode}, but {what}: set the mode to {right}"


def _evaluator_type(name: str) -> str | None:
    return MetadataCatalog.get(name).get("evaluator_type", "coco") if name in DatasetCatalog else None


def _has_no_annotations(name: str) -> bool:
    # A data set that is not a COCO file has its annotations only when it is loaded.
    json_file = MetadataCatalog.get(name).get("json_file", None) if name in DatasetCatalog else None
    if json_file is None or not PathManager.isfile(json_file):
        return False
    try:
        return not read_coco_summary(json_file).has_annotations
    except (OSError, ValueError):  # not COCO's, or to be reported as a problem of the data set
        return False


def _known_metrics(cfg: CfgNode) -> list[str] | None:
    """Names of all results of evaluations; None if a data set has an evaluator of another project."""
    known: list[str] = []
    for name in cfg.DATASETS.TEST:
        kind, prefix = _evaluator_type(name), f"{name}/" if len(cfg.DATASETS.TEST) > 1 else ""
        if kind not in _METRICS:
            return None
        known += [f"{prefix}bbox/{metric}" for metric in _METRICS[kind]]
        known += [f"validation/{prefix}{loss}" for loss in _LOSSES]
        if kind.startswith("coco"):
            known += [f"{prefix}bbox/AP-{c}" for c in class_names(name) or ()]
    return known
