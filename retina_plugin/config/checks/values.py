"""The values that keys of Detectron2 and of the plugin may have: a table of key, rule, and when it applies.

Names of parts in registries are checked in ``model.py``; keys that contradict each other beside the key that asks.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import get_norm
from PIL import ImageMode

from retina_plugin import detectron2_compat
from retina_plugin.config.checks.model import builds_focal_retinanet
from retina_plugin.config.io import flatten, get_cfg
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean

_MAY_BE_NULL = re.compile(r"\.(FOCAL_LOSS_ALPHA|NORM)$")  # which then have none


class Rule(NamedTuple):
    """Which values a key may have.

    Attributes:
        allows: whether a value is one of them.
        text: what follows "KEY is VALUE, " in the message.
        names: the values, for a hint at the closest one.
    """

    allows: Callable[[Any], bool]
    text: str
    names: Collection[str] = ()


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        key: "SECTION.KEY"; a version of Detectron2 without it is not checked.
        rule: its values.
        when: whether the configuration reads the key.
        read_by: the method of ``DefaultTrainer`` that alone reads the key; one of a project may allow other values.
    """

    key: str
    rule: Rule
    when: Callable[[CfgNode], bool] = lambda cfg: True
    read_by: str = ""


def value_problems(cfg: CfgNode, rows: Iterable[Row], replaced: Collection[str] = ()) -> Iterator[str]:
    """Yield a line for each key whose value is not allowed.

    Args:
        cfg: a configuration.
        rows: the part of the table to check.
        replaced: names of methods of ``DefaultTrainer`` that the trainer of a project overrides.
    """
    values = dict(flatten(cfg))
    for key, rule, when, read_by in rows:
        if key not in values or read_by in replaced or not when(cfg) or rule.allows(values[key]):
            continue
        value, hint = values[key], did_you_mean(str(values[key]), rule.names) if rule.names else ""
        shown = f"'{value}'" if isinstance(value, str) else value
        yield f"{key} is {shown}, {rule.text}{hint}"


def require_values(cfg: CfgNode) -> None:
    """Raise ``ConfigError``, with a line each, for keys that are null and have a value by default.

    yacs accepts null for every key; no other check does.
    """
    values = dict(flatten(cfg))
    null = [key for key, value in flatten(get_cfg()) if value is not None and values.get(key, value) is None]
    if problems := [f"{key} is null: give it a value, or leave it out" for key in null if not _MAY_BE_NULL.search(key)]:
        raise ConfigError(problems)


def _is_integer(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(of, value))


def _integer(what: str, least: int = 0) -> Rule:
    return Rule(lambda value: _is_integer(value, least), f"but it is {what}: at least {least}")


def _number(what: str, least: float = 0) -> Rule:
    return Rule(lambda value: _is_number(value) and value >= least, f"but it is {what}: finite, at least {least}")


def _fraction(what: str) -> Rule:
    return Rule(lambda value: _is_number(value) and 0 <= value <= 1, f"but it is {what}: from 0 to 1")


def _names(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"which is none of {', '.join(names)}.", names)


def _list(of: Callable[[Any], bool], what: str) -> Rule:
    return Rule(lambda value: _is_list(value, of), f"but it is {what}")


def _optional(rule: Rule) -> Rule:
    return rule._replace(allows=lambda value: value is None or rule.allows(value))


def _is_norm(name: Any) -> bool:
    try:
        get_norm(name, 32)  # GN has 32 groups
    except KeyError:
        return False
    return True


def _is_format(name: Any) -> bool:
    try:  # Detectron2 leaves all but these two to Pillow, and adds the channel that Pillow leaves out of L
        return name in ("BGR", "YUV-BT.601", "L") or len(ImageMode.getmode(name).bands) >= 3
    except (KeyError, TypeError):
        return False


def _is_device(name: Any) -> bool:
    try:
        device = torch.device(name)
        if device.type == "cuda":  # without a GPU, the CPU takes its place
            return not torch.cuda.is_available() or (device.index or 0) < torch.cuda.device_count()
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError):
        return False
    return device.type != "meta"


def _is_anchor_list(value: Any) -> bool:
    """Numbers for all levels, or a list of numbers for each."""
    return _is_list(value, _is_positive) or _is_list(value, lambda level: _is_list(level, _is_positive))


def _is_size(value: Any) -> bool:
    return _is_list(value, lambda side: _is_integer(side, 1)) and len(value) == 2


def _is_expected_result(value: Any) -> bool:
    *names, metric, tolerance = value if isinstance(value, (list, tuple)) and len(value) == 4 else (None, None, None)
    return all(isinstance(name, str) for name in names) and _is_number(metric) and _is_number(tolerance)


_DEFAULT = get_detectron2_cfg()
_NORMS = [*filter(_is_norm, ("BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN"))]
_NORM = Rule(_is_norm, f"which is none of '', {', '.join(_NORMS)}.", _NORMS)
_SCHEDULERS = ["WarmupMultiStepLR", "WarmupCosineLR"]
_SAMPLERS = ["TrainingSampler", "RepeatFactorTrainingSampler"]
if "NUM_DECAYS" in _DEFAULT.SOLVER:  # later than 0.6
    _SCHEDULERS.append("WarmupStepWithFixedGammaLR")
if "RANDOM_SUBSET_RATIO" in _DEFAULT.DATALOADER:
    _SAMPLERS.append("RandomSubsetTrainingSampler")


def _reads_resnet(cfg: CfgNode) -> bool:
    return cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone" or _reads_fpn(cfg)


def _reads_fpn(cfg: CfgNode) -> bool:
    names = ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone", "build_p3p7_resnet_fpn_backbone")
    return cfg.MODEL.BACKBONE.NAME in names


def _has_crop(cfg: CfgNode) -> bool:
    return cfg.INPUT.CROP.ENABLED


def _has_crop_of(*types: str) -> Callable[[CfgNode], bool]:
    return lambda cfg: _has_crop(cfg) and cfg.INPUT.CROP.TYPE in types


def _has_precise_bn(cfg: CfgNode) -> bool:
    return cfg.TEST.PRECISE_BN.ENABLED


def _samples(name: str) -> Callable[[CfgNode], bool]:
    return lambda cfg: cfg.DATALOADER.SAMPLER_TRAIN == name


_NO_OPERATORS = ", which this installation lacks" if "extension" in detectron2_compat.APPLIED else ""


def _is_deform(value: Any) -> bool:
    return len(value) == 4 and all(stage in (False, True) for stage in value) and not (_NO_OPERATORS and any(value))


_CHANNELS = _integer("a number of channels", 1)
_ANCHORS = Rule(_is_anchor_list, "but it is a list of finite numbers > 0 for each level, or one for all")
_STAGES = ("stem", "res2", "res3", "res4", "res5")
_SCALE = _list(lambda side: _is_number(side) and side >= 0, "a list of sides in pixels, 0 for as it is: at least one")

MODEL: list[Row] = [
    Row("MODEL.PIXEL_MEAN", _list(_is_number, "a finite number for each channel")),
    Row("MODEL.PIXEL_STD", _list(_is_positive, "a finite number > 0 for each channel, by which pixels are divided")),
    Row("MODEL.RESNETS.DEPTH", Rule(lambda v: v in (18, 34, 50, 101, 152), "which is none of 18, 34, 50, 101, 152."),
        _reads_resnet),
    Row("MODEL.RESNETS.NORM", _NORM, _reads_resnet),
    Row("MODEL.RESNETS.OUT_FEATURES", _list(lambda v: v in _STAGES, f"a list of {', '.join(_STAGES)}"), _reads_resnet),
    Row("MODEL.RESNETS.NUM_GROUPS", _integer("a number of groups", 1), _reads_resnet),
    Row("MODEL.RESNETS.WIDTH_PER_GROUP", _CHANNELS, _reads_resnet),
    Row("MODEL.RESNETS.STEM_OUT_CHANNELS", _CHANNELS, _reads_resnet),
    Row("MODEL.RESNETS.RES2_OUT_CHANNELS", _CHANNELS, _reads_resnet),
    Row("MODEL.RESNETS.RES5_DILATION", Rule(lambda v: v in (1, 2), "which is neither 1 nor 2."), _reads_resnet),
    Row("MODEL.RESNETS.DEFORM_ON_PER_STAGE", Rule(_is_deform, "but it is True or False for each of res2 to res5, and "
        "True needs Detectron2's compiled operators" + _NO_OPERATORS), _reads_resnet),
    Row("MODEL.FPN.NORM", _NORM, _reads_fpn),
    Row("MODEL.FPN.FUSE_TYPE", _names("sum", "avg"), _reads_fpn),
    Row("MODEL.FPN.OUT_CHANNELS", _CHANNELS, _reads_fpn),
    Row("MODEL.ANCHOR_GENERATOR.SIZES", _ANCHORS, builds_focal_retinanet),
    Row("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", _ANCHORS, builds_focal_retinanet),
    Row("MODEL.ANCHOR_GENERATOR.OFFSET", Rule(lambda v: _is_number(v) and 0 <= v < 1,
        "but it is the place of anchors in a cell: from 0 to below 1"), builds_focal_retinanet),
    Row("MODEL.RETINANET.NORM", _NORM, builds_focal_retinanet),
    Row("MODEL.RETINANET.NUM_CONVS", _integer("a number of layers"), builds_focal_retinanet),
    Row("MODEL.RETINANET.TOPK_CANDIDATES_TEST", _integer("a number of candidates a level", 1), builds_focal_retinanet),
    Row("MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS", Rule(lambda v: not v or _is_list(v, lambda a: 0 <= a <= 1),
        "but it is the weight of each positive class: from 0 to 1"), builds_focal_retinanet),
    Row("MODEL.RETINANET.IOU_THRESHOLDS", _list(_is_number, "a list of finite numbers"), builds_focal_retinanet),
    Row("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", _number("the error where the loss turns from L2 to L1"),
        builds_focal_retinanet),
    Row("MODEL.RETINANET.NMS_THRESH_TEST", _fraction("an IoU"), builds_focal_retinanet),
    Row("MODEL.RETINANET.SCORE_THRESH_TEST", Rule(lambda v: _is_number(v) and v <= 1,
        "but it is a score: finite, at most 1"), builds_focal_retinanet),
    Row("MODEL.RETINANET.BBOX_REG_WEIGHTS", Rule(lambda v: _is_list(v, _is_positive) and len(v) == 4,
        "but it is four finite numbers > 0, by which dx, dy, dw and dh are multiplied"), builds_focal_retinanet),
    Row("TEST.DETECTIONS_PER_IMAGE", _integer("a number of detections", 1), builds_focal_retinanet),
]  # fmt: skip

JOB: list[Row] = [
    Row("MODEL.DEVICE", Rule(_is_device, "which is no device that torch has here: cpu, cuda, or cuda:N.")),
    Row("INPUT.FORMAT", Rule(_is_format, "which is no format of Detectron2's: BGR, RGB, L, YUV-BT.601, or a mode of "
        "Pillow with three channels or more.", ("BGR", "RGB", "YUV-BT.601")), read_by="build_train_loader"),
    Row("INPUT.MIN_SIZE_TEST", _integer("the shorter side in pixels, or 0 for as it is")),
    Row("INPUT.MAX_SIZE_TEST", _integer("the longer side in pixels", 1)),
    Row("DATALOADER.NUM_WORKERS", _integer("a number of processes, or 0 to read in this one")),
    Row("TEST.EXPECTED_RESULTS", Rule(lambda v: not v or _is_list(v, _is_expected_result),
        "but it is a list of [task, metric, value, tolerance], as in [['bbox', 'AP', 38.5, 0.2]]")),
    Row("SEED", Rule(lambda v: _is_integer(v) and v <= 2**32 - 2**16,  # numpy's limit; each rank adds its number
        f"but it is an integer: at most {2**32 - 2**16}, or negative for any")),
]  # fmt: skip

TRAINING: list[Row] = [
    Row("SOLVER.MAX_ITER", _integer("a number of iterations", 1)),
    Row("SOLVER.IMS_PER_BATCH", _integer("the images of a step, of all processes together", 1)),
    Row("SOLVER.BASE_LR", _number("a learning rate")),
    Row("SOLVER.MOMENTUM", Rule(lambda v: _is_number(v) and 0 <= v < 1, "but it is a momentum: from 0 to below 1")),
    Row("SOLVER.NESTEROV", Rule(lambda v: v is False, "but it needs a SOLVER.MOMENTUM above 0"),
        lambda cfg: cfg.SOLVER.MOMENTUM == 0),
    Row("SOLVER.WEIGHT_DECAY", _number("a factor of the weights")),
    Row("SOLVER.WEIGHT_DECAY_NORM", _optional(_number("a factor of the weights of norms"))),
    Row("SOLVER.WEIGHT_DECAY_BIAS", _optional(_number("a factor of the biases, or None for WEIGHT_DECAY"))),
    Row("SOLVER.BIAS_LR_FACTOR", _number("a factor of the learning rate")),
    Row("SOLVER.GAMMA", _number("a factor of the learning rate")),
    Row("SOLVER.STEPS", Rule(lambda v: all(map(_is_positive, v)), "but it is a list of iterations: all above 0")),
    Row("SOLVER.WARMUP_FACTOR", _number("a factor of the learning rate")),
    Row("SOLVER.WARMUP_ITERS", _integer("a number of iterations, or 0 for none")),
    Row("SOLVER.WARMUP_METHOD", _names("linear", "constant"), read_by="build_lr_scheduler"),
    Row("SOLVER.LR_SCHEDULER_NAME", _names(*_SCHEDULERS), read_by="build_lr_scheduler"),
    Row("SOLVER.NUM_DECAYS", _integer("a number of decays", 1),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR"),
    Row("SOLVER.CHECKPOINT_PERIOD", _integer("a number of iterations", 1)),
    Row("DATALOADER.SAMPLER_TRAIN", _names(*_SAMPLERS), read_by="build_train_loader"),
    Row("DATALOADER.REPEAT_THRESHOLD", _number("the share of images below which a class is repeated"),
        _samples("RepeatFactorTrainingSampler")),
    Row("DATALOADER.RANDOM_SUBSET_RATIO", Rule(lambda v: _is_number(v) and 0 < v <= 1,
        "but it is a share of the images: above 0, up to 1"), _samples("RandomSubsetTrainingSampler")),
    Row("DATALOADER.MAX_UNREADABLE", _integer("a number of images, or -1 for 1 %", -1)),
    Row("INPUT.MIN_SIZE_TRAIN", _SCALE),
    Row("INPUT.MIN_SIZE_TRAIN", Rule(lambda v: len(v) == 2 and v[0] <= v[1],
        "but INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range': give the smallest and the largest side"),
        lambda cfg: cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and _SCALE.allows(cfg.INPUT.MIN_SIZE_TRAIN)),
    Row("INPUT.MIN_SIZE_TRAIN_SAMPLING", _names("choice", "range"), read_by="build_train_loader"),
    Row("INPUT.MAX_SIZE_TRAIN", _integer("the longer side in pixels", 1)),
    Row("INPUT.RANDOM_FLIP", _names("none", "horizontal", "vertical"), read_by="build_train_loader"),
    Row("INPUT.CROP.TYPE", _names("relative_range", "relative", "absolute", "absolute_range"), _has_crop,
        read_by="build_train_loader"),
    Row("INPUT.CROP.SIZE", Rule(lambda v: _is_list(v, lambda s: _is_positive(s) and s <= 1) and len(v) == 2,
        "but with INPUT.CROP.TYPE relative or relative_range it is the shares of height and width: above 0, up to 1"),
        _has_crop_of("relative", "relative_range"), read_by="build_train_loader"),
    Row("INPUT.CROP.SIZE", Rule(_is_size, "but with INPUT.CROP.TYPE absolute it is height and width in pixels"),
        _has_crop_of("absolute"), read_by="build_train_loader"),
    Row("INPUT.CROP.SIZE", Rule(lambda v: _is_size(v) and v[0] <= v[1],
        "but with INPUT.CROP.TYPE absolute_range it is the smallest and the largest side in pixels"),
        _has_crop_of("absolute_range"), read_by="build_train_loader"),
    Row("LOG_PERIOD", _integer("a number of iterations", 1)),
    Row("TEST.EVAL_PERIOD", _integer("a number of iterations, or 0 for the end alone")),
    Row("TEST.VAL_LOSS_PERIOD", _integer("a number of iterations, or 0 for never")),
    Row("TEST.EARLY_STOPPING.PATIENCE", _integer("a number of evaluations, or 0 for off")),
    Row("TEST.EARLY_STOPPING.MIN_DELTA", _number("an improvement of the metric")),
    # COCO's list of limits begins with 1 and 10, and is in order.
    Row("TEST.AP_DETECTIONS_PER_IMAGE", _integer("a number of detections", 10)),
    Row("TEST.PRECISE_BN.NUM_ITER", _integer("a number of iterations", 1), _has_precise_bn),
]  # fmt: skip
