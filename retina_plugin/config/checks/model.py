"""Checks of the keys that the model is built from."""

import itertools
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from retina_plugin.config.defaults import PRECISIONS, TRAINING_PRECISIONS
from retina_plugin.config.io import flatten, get_cfg
from retina_plugin.config.registries import CLASSIFICATION_LOSS_REGISTRY, REGISTRY_OF_KEY
from retina_plugin.core.text import did_you_mean

_DETECTRON2_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
}
_PRECISIONS = {"TEST.PRECISION": PRECISIONS, "SOLVER.AMP.PRECISION": TRAINING_PRECISIONS}

# R-CNN's keys with a counterpart in RetinaNet.
_TWINS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.IOU_LABELS": "MODEL.RETINANET.IOU_LABELS",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "MODEL.RETINANET.BBOX_REG_WEIGHTS",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "MODEL.RETINANET.BBOX_REG_LOSS_TYPE",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "MODEL.RPN.IOU_THRESHOLDS": "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.RPN.IOU_LABELS": "MODEL.RETINANET.IOU_LABELS",
    "MODEL.RPN.IN_FEATURES": "MODEL.RETINANET.IN_FEATURES",
    "MODEL.RPN.NMS_THRESH": "MODEL.RETINANET.NMS_THRESH_TEST",
}
_RCNN_NODES = ("MODEL.ROI_", "MODEL.RPN.", "MODEL.PROPOSAL_GENERATOR.")
_RCNN_SWITCHES = ("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "TEST.AUG.ENABLED")


def builds_focal_retinanet(cfg: CfgNode) -> bool:
    """Whether the meta-architecture reads the keys of RetinaNet, as ``FocalRetinaNet`` and its subclasses do."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and getattr(META_ARCH_REGISTRY.get(name), "reads_retinanet_keys", False)


def name_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each key that names an unregistered part or an unknown precision."""
    values = dict(flatten(cfg))
    for key, registry in {**_DETECTRON2_REGISTRIES, **REGISTRY_OF_KEY}.items():
        name = values[key]
        if name not in registry:
            known = sorted(n for n, _ in registry)
            hint = did_you_mean(name, known) or f" Registered: {', '.join(known)}."
            yield f"{key} is '{name}', which nothing registers.{hint}"
    for key, precisions in _PRECISIONS.items():
        if values[key] not in precisions:
            hint = did_you_mean(values[key], precisions)
            yield f"{key} is '{values[key]}', which is none of {', '.join(precisions)}.{hint}"


def model_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each key that contradicts another one, or that the chosen part does not read."""
    if not builds_focal_retinanet(cfg):
        return
    default = dict(flatten(get_cfg()))
    if cfg.MODEL.RETINANET.NUM_CLASSES < 1:
        yield f"MODEL.RETINANET.NUM_CLASSES is {cfg.MODEL.RETINANET.NUM_CLASSES}; a detector needs at least 1"

    yield from _loss_key_problems(cfg, default)

    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std):
        yield (
            f"MODEL.PIXEL_MEAN has {len(mean)} numbers and MODEL.PIXEL_STD {len(std)}: give one for each channel of "
            "INPUT.FORMAT"
        )
    name = cfg.MODEL.ANCHOR_GENERATOR.NAME
    if name in ANCHOR_GENERATOR_REGISTRY and getattr(ANCHOR_GENERATOR_REGISTRY.get(name), "box_dim", 4) != 4:
        yield f"MODEL.ANCHOR_GENERATOR.NAME is '{name}', whose boxes are rotated: FocalRetinaNet has upright ones"

    used = list(cfg.MODEL.RETINANET.IN_FEATURES)
    if not used:
        yield "MODEL.RETINANET.IN_FEATURES is empty: the head needs at least one level"
    for key in ("SIZES", "ASPECT_RATIOS"):
        lists = cfg.MODEL.ANCHOR_GENERATOR[key]
        if all(isinstance(level, (list, tuple)) for level in lists) and len(lists) not in (0, 1, len(used)):
            yield (
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(lists)} lists for the {len(used)} levels of "
                "MODEL.RETINANET.IN_FEATURES; give one list a level, or one for all"
            )
    backbone = cfg.MODEL.BACKBONE.NAME
    for key in ("MODEL.FPN.TOP_BLOCK_IN_FEATURE", "MODEL.FPN.TOP_BLOCK_RELU", "MODEL.FPN.SIZE_DIVISIBILITY"):
        value = cfg.MODEL.FPN[key.rpartition(".")[2]]
        if backbone == "build_retinanet_resnet_fpn_backbone" and value != default[key]:
            yield (
                f"{key} is {value}, which MODEL.BACKBONE.NAME {backbone} does not read. "
                "Did you mean build_p3p7_resnet_fpn_backbone?"
            )
    made_by_resnet = list(cfg.MODEL.RESNETS.OUT_FEATURES)
    absent = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in made_by_resnet]
    if absent and backbone in ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"):
        yield f"MODEL.FPN.IN_FEATURES has {absent}, but MODEL.RESNETS.OUT_FEATURES is {made_by_resnet}: add them there"
    if backbone in ("build_p3p7_resnet_fpn_backbone", "build_p3p7_timm_fpn_backbone"):
        made = [f"p{f[3:]}" for f in cfg.MODEL.FPN.IN_FEATURES] + ["p6", "p7"]
        if used and used != made:
            yield (
                f"MODEL.RETINANET.IN_FEATURES is {used}, but the backbone makes {made}: levels that the head "
                "does not use would be computed for nothing, and levels that are not made cannot be used. "
                "Make both lists agree (MODEL.FPN.IN_FEATURES decides where the pyramid starts). For a pyramid without "
                "P6 and P7, set MODEL.BACKBONE.NAME to build_resnet_fpn_backbone"
            )


def rcnn_key_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each key of R-CNN that is set, which ``FocalRetinaNet`` does not read."""
    if not builds_focal_retinanet(cfg):
        return
    default = dict(flatten(get_cfg()))
    for key, value in flatten(cfg):
        of_rcnn = key.startswith(_RCNN_NODES) or key in _RCNN_SWITCHES
        if of_rcnn and key in default and _as_lists(value) != _as_lists(default[key]):
            twin = f" Did you mean {_TWINS[key]}?" if key in _TWINS else " Remove it."
            yield f"{key} is set to {value}, but belongs to R-CNN and does nothing here.{twin}"


def _loss_key_problems(cfg: CfgNode, default: dict[str, Any]) -> Iterator[str]:
    chosen = cfg.MODEL.RETINANET.CLS_LOSS
    keys = {name: f.reads_keys for name, f in CLASSIFICATION_LOSS_REGISTRY if hasattr(f, "reads_keys")}
    if chosen not in keys:
        return  # a loss without reads_keys may read any key
    for key in sorted(set(itertools.chain(*keys.values())) - set(keys[chosen])):
        value = cfg.MODEL.RETINANET.get(key)
        if f"MODEL.RETINANET.{key}" in default and value != default[f"MODEL.RETINANET.{key}"]:
            reader = next(name for name in keys if key in keys[name])
            yield (
                f"MODEL.RETINANET.{key} is set to {value}, but MODEL.RETINANET.CLS_LOSS {chosen} does not read it. "
                f"Did you mean MODEL.RETINANET.CLS_LOSS {reader}?"
            )


def _as_lists(value: Any) -> Any:
    # YAML has no tuples: a run's config.yaml has lists where the defaults have tuples within tuples.
    return [_as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
