"""Builds and runs the model on the meta device, without memory or time, to find what would stop its training."""

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.nn.precise_bn import get_bn_modules

from retina_plugin.config import checks
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import list_some
from retina_plugin.modeling import FocalRetinaNet

_NEVER_BUILDS = (AssertionError, IndexError, KeyError, OverflowError, ValueError, ZeroDivisionError)


def check_model(cfg: CfgNode, num_processes: int = 1) -> None:
    """Build the model on the meta device, so that problems are reported before any process is started.

    Args:
        num_processes: of the training; 1 in an evaluation. With several, every parameter needs a gradient.

    Raises:
        ConfigError: the model cannot be built, or has parameters that no loss depends on.
    """
    if not checks.builds_focal_retinanet(cfg):
        return
    try:
        model = _build(cfg)
    except ConfigError:
        raise
    except _NEVER_BUILDS as error:
        reason = " ".join(map(str, error.args)) or type(error).__name__
        raise ConfigError([f"the model cannot be built: {reason}"]) from error
    except Exception as error:
        # The settings may be right: some backbones compute with tensors when they are built, which "meta" cannot.
        logging.getLogger(__name__).debug("The model was not checked ahead of time: %r", error)
        return
    if num_processes > 1 and (unused := _unused_parameters(model)):
        levels = list(cfg.MODEL.RETINANET.IN_FEATURES)
        raise ConfigError([
            f"MODEL.RETINANET.IN_FEATURES is {levels}, and {len(unused)} parameters of MODEL.BACKBONE.NAME "
            f"{cfg.MODEL.BACKBONE.NAME} are for other levels ({list_some(unused, 3)}). They would get no gradient, and "
            "training in several processes needs one of every parameter: use all levels that the backbone makes, or a "
            "backbone that makes these alone, such as build_resnet_fpn_backbone for p3 to p5"
        ])  # fmt: skip


def check_batch_norm(cfg: CfgNode, micro_batch: int, images: Any) -> None:
    """Check that a batch norm in training never gets a single value a channel, of which there is no variance.

    Args:
        cfg: a configuration whose images Detectron2's ``DatasetMapper`` resizes.
        micro_batch: images that are in the model at a time.
        images: dataset dicts by index; those without ``width`` and ``height`` are not checked.

    Raises:
        ConfigError: the smallest image of a training would stop it.
    """
    sides, longest = list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    if micro_batch > 1 or not checks.builds_focal_retinanet(cfg) or cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING != "choice":
        return
    try:
        model = _build(cfg).train()
        smallest = min(*sides, longest)
        if not get_bn_modules(model) or (smallest > 0 and _batch_norm_error(model, smallest, smallest) is None):
            return  # without looking at the images
        dicts = (images[i] for i in range(len(images)))
        sizes = {(int(image["height"]), int(image["width"])) for image in dicts if {"height", "width"} <= image.keys()}
        resize = ResizeShortestEdge.get_output_shape
        resized = [resize(*size, side, longest) if side else size for size in sizes for side in sides]
        height, width = min(resized, key=max, default=(longest, longest))
        error = _batch_norm_error(model, height, width)
    except Exception as problem:  # not every backbone is built or runs there
        logging.getLogger(__name__).debug("Batch norms were not checked ahead of time: %r", problem)
        return
    if error is None:
        return
    translated = translate_batch_norm_error(error, f"an image of {width}x{height} pixels, alone in its micro-batch")
    if translated is not error:
        raise translated from error


def translate_batch_norm_error(error: ValueError, of: str) -> ValueError:
    """Return a ``ConfigError`` that says what to do about torch's error of a batch norm; any other error as it is."""
    if "more than 1 value per channel" not in str(error):
        return error
    shape = str(error).rpartition("input size ")[2]
    return ConfigError([
        f"a batch norm in training has no statistics of a single value a channel, which it gets ({shape}) from {of}. "
        "Take more images a process (SOLVER.IMS_PER_BATCH, SOLVER.ACCUMULATE_STEPS) or larger ones "
        "(INPUT.MIN_SIZE_TRAIN), or norms without these statistics: GN or FrozenBN in MODEL.FPN.NORM, "
        "MODEL.RETINANET.NORM and MODEL.RESNETS.NORM"
    ])  # fmt: skip


def _build(cfg: CfgNode) -> Any:
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def _predict(model: Any, batch: int, height: int, width: int) -> Any:
    """Return what the head predicts for black images, on torch's default device."""
    features = model.backbone(torch.zeros(batch, len(model.pixel_mean), height, width))
    return model.head([features[name] for name in model.head_in_features])


def _batch_norm_error(model: Any, height: int, width: int) -> ValueError | None:
    """What the forward pass of one image raises."""
    multiple = max(model.backbone.size_divisibility, 1)
    padded = (int(-(-side // multiple) * multiple) for side in (height, width))
    try:
        with torch.device("meta"), torch.no_grad():
            _predict(model, 1, *padded)
    except ValueError as error:
        return error
    return None


def _unused_parameters(model: Any) -> list[str]:
    """Names of trainable parameters that the head's predictions do not depend on."""
    if type(model) is not FocalRetinaNet:  # the losses of others may need more
        return []
    try:
        with torch.device("meta"):
            logits, deltas, *_ = _predict(model, 2, 256, 256)
            sum(level.sum() for level in (*logits, *deltas)).backward()
    except Exception as error:  # not every backbone runs there
        logging.getLogger(__name__).debug("Gradients were not checked ahead of time: %r", error)
        return []
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
