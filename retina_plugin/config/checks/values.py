"""The values that keys of Detectron2 and of the plugin may have: a table of key, rule, and when it applies.

Names of parts in registries are checked in ``model.py``; keys that contradict each other beside the key that asks.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import get_norm
from PIL import ImageMode

from retina_plugin import detectron2_compat
from retina_plugin.config.checks.model import builds_focal_retinanet
from retina_plugin.config.checks.rules import (
    Row,
    Rule,
    fraction,
    integer,
    is_integer,
    is_list,
    is_positive,
    list_of,
    number,
    one_of,
    optional,
)
from retina_plugin.core.plain import is_number


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
    return is_list(value, is_positive) or is_list(value, lambda level: is_list(level, is_positive))


def _is_size(value: Any) -> bool:
    return is_list(value, lambda side: is_integer(side, 1)) and len(value) == 2


def _is_expected_result(value: Any) -> bool:
    *names, metric, tolerance = value if isinstance(value, (list, tuple)) and len(value) == 4 else (None, None, None)
    return all(isinstance(name, str) for name in names) and is_number(metric) and is_number(tolerance)


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
    name = cfg.MODEL.BACKBONE.NAME
    return name == "build_resnet_backbone" or (_reads_fpn(cfg) and name != "build_p3p7_timm_fpn_backbone")


def _reads_fpn(cfg: CfgNode) -> bool:
    return cfg.MODEL.BACKBONE.NAME in (
        *("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"),
        *("build_p3p7_resnet_fpn_backbone", "build_p3p7_timm_fpn_backbone"),
    )


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


_CHANNELS = integer("a number of channels", 1)
_ANCHORS = Rule(_is_anchor_list, "but it is a list of finite numbers > 0 for each level, or one for all")
_STAGES = ("stem", "res2", "res3", "res4", "res5")
_TILE_SIZE = integer("the side of a tile in pixels of the image, or 0 for whole images")
_TILE_OVERLAP = integer("pixels of the image that neighboring tiles share")
_SCALE = list_of(lambda side: is_number(side) and side >= 0, "a list of sides in pixels, 0 for as it is: at least one")

MODEL: list[Row] = [
    Row("MODEL.PIXEL_MEAN", list_of(is_number, "a finite number for each channel")),
    Row("MODEL.PIXEL_STD", list_of(is_positive, "a finite number > 0 for each channel, by which pixels are divided")),
    Row("MODEL.RESNETS.DEPTH", Rule(lambda v: v in (18, 34, 50, 101, 152), "which is none of 18, 34, 50, 101, 152."),
        _reads_resnet),
    Row("MODEL.RESNETS.NORM", _NORM, _reads_resnet),
    Row("MODEL.RESNETS.OUT_FEATURES", list_of(_STAGES.__contains__, f"a list of {', '.join(_STAGES)}"), _reads_resnet),
    Row("MODEL.RESNETS.NUM_GROUPS", integer("a number of groups", 1), _reads_resnet),
    Row("MODEL.RESNETS.WIDTH_PER_GROUP", _CHANNELS, _reads_resnet),
    Row("MODEL.RESNETS.STEM_OUT_CHANNELS", _CHANNELS, _reads_resnet),
    Row("MODEL.RESNETS.RES2_OUT_CHANNELS", _CHANNELS, _reads_resnet),
    Row("MODEL.RESNETS.RES5_DILATION", Rule(lambda v: v in (1, 2), "which is neither 1 nor 2."), _reads_resnet),
    Row("MODEL.RESNETS.DEFORM_ON_PER_STAGE", Rule(_is_deform, "but it is True or False for each of res2 to res5, and "
        "True needs Detectron2's compiled operators" + _NO_OPERATORS), _reads_resnet),
    Row("MODEL.FPN.NORM", _NORM, _reads_fpn),
    Row("MODEL.FPN.FUSE_TYPE", one_of("sum", "avg"), _reads_fpn),
    Row("MODEL.FPN.OUT_CHANNELS", _CHANNELS, _reads_fpn),
    Row("MODEL.ANCHOR_GENERATOR.SIZES", _ANCHORS, builds_focal_retinanet),
    Row("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", _ANCHORS, builds_focal_retinanet),
    Row("MODEL.ANCHOR_GENERATOR.OFFSET", Rule(lambda v: is_number(v) and 0 <= v < 1,
        "but it is the place of anchors in a cell: from 0 to below 1"), builds_focal_retinanet),
    Row("MODEL.RETINANET.NORM", _NORM, builds_focal_retinanet),
    Row("MODEL.RETINANET.NUM_CONVS", integer("a number of layers"), builds_focal_retinanet),
    Row("MODEL.RETINANET.TOPK_CANDIDATES_TEST", integer("a number of candidates a level", 1), builds_focal_retinanet),
    Row("MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS", Rule(lambda v: not v or is_list(v, fraction("").allows),
        "but it is the weight of each positive class: from 0 to 1"), builds_focal_retinanet),
    Row("MODEL.RETINANET.IOU_THRESHOLDS", list_of(is_number, "a list of finite numbers"), builds_focal_retinanet),
    Row("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", number("the error where the loss turns from L2 to L1"),
        builds_focal_retinanet),
    Row("MODEL.RETINANET.NMS_THRESH_TEST", fraction("an IoU"), builds_focal_retinanet),
    Row("MODEL.RETINANET.SCORE_THRESH_TEST", Rule(lambda v: is_number(v) and v <= 1,
        "but it is a score: finite, at most 1"), builds_focal_retinanet),
    Row("MODEL.RETINANET.BBOX_REG_WEIGHTS", Rule(lambda v: is_list(v, is_positive) and len(v) == 4,
        "but it is four finite numbers > 0, by which dx, dy, dw and dh are multiplied"), builds_focal_retinanet),
    Row("TEST.DETECTIONS_PER_IMAGE", integer("a number of detections", 1), builds_focal_retinanet),
]  # fmt: skip

JOB: list[Row] = [
    Row("MODEL.DEVICE", Rule(_is_device, "which is no device that torch has here: cpu, cuda, or cuda:N.")),
    Row("INPUT.FORMAT", Rule(_is_format, "which is no format of Detectron2's: BGR, RGB, L, YUV-BT.601, or a mode of "
        "Pillow with three channels or more.", ("BGR", "RGB", "YUV-BT.601")), read_by="build_train_loader"),
    Row("INPUT.MIN_SIZE_TEST", integer("the shorter side in pixels, or 0 for as it is")),
    Row("INPUT.MAX_SIZE_TEST", integer("the longer side in pixels", 1)),
    Row("TEST.TILE.SIZE", _TILE_SIZE),
    Row("TEST.TILE.OVERLAP", _TILE_OVERLAP),
    Row("TEST.TILE.BATCH", integer("a number of tiles", 1)),
    Row("DATALOADER.NUM_WORKERS", integer("a number of processes, or 0 to read in this one")),
    Row("TEST.EXPECTED_RESULTS", Rule(lambda v: not v or is_list(v, _is_expected_result),
        "but it is a list of [task, metric, value, tolerance], as in [['bbox', 'AP', 38.5, 0.2]]")),
    Row("SEED", Rule(lambda v: is_integer(v) and v <= 2**32 - 2**16,  # numpy's limit; each rank adds its number
        f"but it is an integer: at most {2**32 - 2**16}, or negative for any")),
]  # fmt: skip

TRAINING: list[Row] = [
    Row("SOLVER.MAX_ITER", integer("a number of iterations", 1)),
    Row("SOLVER.IMS_PER_BATCH", integer("the images of a step, of all processes together", 1)),
    Row("SOLVER.BASE_LR", number("a learning rate")),
    Row("SOLVER.MOMENTUM", Rule(lambda v: is_number(v) and 0 <= v < 1, "but it is a momentum: from 0 to below 1")),
    Row("SOLVER.NESTEROV", Rule(lambda v: v is False, "but it needs a SOLVER.MOMENTUM above 0"),
        lambda cfg: cfg.SOLVER.MOMENTUM == 0),
    Row("SOLVER.WEIGHT_DECAY", number("a factor of the weights")),
    Row("SOLVER.WEIGHT_DECAY_NORM", optional(number("a factor of the weights of norms"))),
    Row("SOLVER.WEIGHT_DECAY_BIAS", optional(number("a factor of the biases, or None for WEIGHT_DECAY"))),
    Row("SOLVER.BIAS_LR_FACTOR", number("a factor of the learning rate")),
    Row("SOLVER.GAMMA", number("a factor of the learning rate")),
    Row("SOLVER.STEPS", Rule(lambda v: all(map(is_positive, v)), "but it is a list of iterations: all above 0")),
    Row("SOLVER.WARMUP_FACTOR", number("a factor of the learning rate")),
    Row("SOLVER.WARMUP_ITERS", integer("a number of iterations, or 0 for none")),
    Row("SOLVER.WARMUP_METHOD", one_of("linear", "constant"), read_by="build_lr_scheduler"),
    Row("SOLVER.LR_SCHEDULER_NAME", one_of(*_SCHEDULERS), read_by="build_lr_scheduler"),
    Row("SOLVER.NUM_DECAYS", integer("a number of decays", 1),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR"),
    Row("SOLVER.CHECKPOINT_PERIOD", integer("a number of iterations", 1)),
    Row("DATALOADER.SAMPLER_TRAIN", one_of(*_SAMPLERS), read_by="build_train_loader"),
    Row("DATALOADER.REPEAT_THRESHOLD", number("the share of images below which a class is repeated"),
        _samples("RepeatFactorTrainingSampler")),
    Row("DATALOADER.RANDOM_SUBSET_RATIO", Rule(lambda v: is_number(v) and 0 < v <= 1,
        "but it is a share of the images: above 0, up to 1"), _samples("RandomSubsetTrainingSampler")),
    Row("DATALOADER.MAX_UNREADABLE", integer("a number of images, or -1 for 1 %", -1)),
    Row("INPUT.MIN_SIZE_TRAIN", _SCALE),
    Row("INPUT.MIN_SIZE_TRAIN", Rule(lambda v: len(v) == 2 and v[0] <= v[1],
        "but INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range': give the smallest and the largest side"),
        lambda cfg: cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and _SCALE.allows(cfg.INPUT.MIN_SIZE_TRAIN)),
    Row("INPUT.MIN_SIZE_TRAIN_SAMPLING", one_of("choice", "range"), read_by="build_train_loader"),
    Row("INPUT.MAX_SIZE_TRAIN", integer("the longer side in pixels", 1)),
    Row("INPUT.RANDOM_FLIP", one_of("none", "horizontal", "vertical"), read_by="build_train_loader"),
    Row("INPUT.TILE.SIZE", _TILE_SIZE),
    Row("INPUT.TILE.OVERLAP", _TILE_OVERLAP),
    Row("INPUT.CROP.TYPE", one_of("relative_range", "relative", "absolute", "absolute_range"), _has_crop,
        read_by="build_train_loader"),
    Row("INPUT.CROP.SIZE", Rule(lambda v: is_list(v, lambda s: is_positive(s) and s <= 1) and len(v) == 2,
        "but with INPUT.CROP.TYPE relative or relative_range it is the shares of height and width: above 0, up to 1"),
        _has_crop_of("relative", "relative_range"), read_by="build_train_loader"),
    Row("INPUT.CROP.SIZE", Rule(_is_size, "but with INPUT.CROP.TYPE absolute it is height and width in pixels"),
        _has_crop_of("absolute"), read_by="build_train_loader"),
    Row("INPUT.CROP.SIZE", Rule(lambda v: _is_size(v) and v[0] <= v[1],
        "but with INPUT.CROP.TYPE absolute_range it is the smallest and the largest side in pixels"),
        _has_crop_of("absolute_range"), read_by="build_train_loader"),
    Row("LOG_PERIOD", integer("a number of iterations", 1)),
    Row("TEST.EVAL_PERIOD", integer("a number of iterations, or 0 for the end alone")),
    Row("TEST.VAL_LOSS_PERIOD", integer("a number of iterations, or 0 for never")),
    Row("TEST.EARLY_STOPPING.PATIENCE", integer("a number of evaluations, or 0 for off")),
    Row("TEST.EARLY_STOPPING.MIN_DELTA", number("an improvement of the metric")),
    # COCO's list of limits begins with 1 and 10, and is in order.
    Row("TEST.AP_DETECTIONS_PER_IMAGE", integer("a number of detections", 10)),
    Row("TEST.PRECISE_BN.NUM_ITER", integer("a number of iterations", 1), _has_precise_bn),
]  # fmt: skip
