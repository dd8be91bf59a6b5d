"""Whether there is a model with these keys, and whether it reads all of them."""

import itertools

from detectron2.config import get_cfg
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from retina_plugin.config import add_retina_config, flatten
from retina_plugin.config.registries import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.core.text import did_you_mean

# Keys of R-CNN that have a twin in RetinaNet.
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


def builds_focal_retinanet(cfg):
    """Whether the configured meta-architecture is ``FocalRetinaNet`` or a subclass, to which all checks apply."""
    from retina_plugin.modeling import FocalRetinaNet  # which imports this module

    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(architecture, type) and issubclass(architecture, FocalRetinaNet)


def name_problems(cfg):
    # The registries are filled by modules that import this one.
    from retina_plugin.modeling import RETINANET_HEAD_REGISTRY
    from retina_plugin.modeling.precision import PRECISIONS, TRAINING_PRECISIONS

    for key, name, registry in [
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.ANCHOR_GENERATOR.NAME", cfg.MODEL.ANCHOR_GENERATOR.NAME, ANCHOR_GENERATOR_REGISTRY),
        ("MODEL.RETINANET.HEAD_NAME", cfg.MODEL.RETINANET.HEAD_NAME, RETINANET_HEAD_REGISTRY),
        ("MODEL.RETINANET.CLS_LOSS", cfg.MODEL.RETINANET.CLS_LOSS, CLASSIFICATION_LOSS_REGISTRY),
    ]:
        if name not in registry:
            known = sorted(n for n, _ in registry)
            hint = did_you_mean(name, known) or f" Registered: {', '.join(known)}."
            yield f"{key} is '{name}', which nothing registers.{hint}"
    for key, name, known in [
        ("TEST.PRECISION", cfg.TEST.PRECISION, PRECISIONS),
        ("SOLVER.AMP.PRECISION", cfg.SOLVER.AMP.PRECISION, TRAINING_PRECISIONS),
    ]:
        if name not in known:
            yield f"{key} is '{name}', which is none of {', '.join(known)}.{did_you_mean(name, known)}"


def model_problems(cfg):
    if not builds_focal_retinanet(cfg):
        return
    default = get_cfg()
    add_retina_config(default)
    default = dict(flatten(default))
    for key, value in flatten(cfg):
        of_rcnn = key.startswith(_RCNN_NODES) or key in _RCNN_SWITCHES
        if of_rcnn and key in default and _as_lists(value) != _as_lists(default[key]):
            twin = f" Did you mean {_TWINS[key]}?" if key in _TWINS else " Remove it."
            yield f"{key} is set to {value}, but belongs to R-CNN and does nothing here.{twin}"

    if cfg.MODEL.RETINANET.NUM_CLASSES < 1:
        yield f"MODEL.RETINANET.NUM_CLASSES is {cfg.MODEL.RETINANET.NUM_CLASSES}; a detector needs at least 1"

    yield from _loss_key_problems(cfg, default)

    used = list(cfg.MODEL.RETINANET.IN_FEATURES)
    if not used:
        yield "MODEL.RETINANET.IN_FEATURES is empty: the head needs at least one level"
    for key in ("SIZES", "ASPECT_RATIOS"):
        lists = cfg.MODEL.ANCHOR_GENERATOR[key]
        if len(lists) not in (1, len(used)):
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
    if backbone == "build_p3p7_resnet_fpn_backbone":
        made = [f"p{f[3:]}" for f in cfg.MODEL.FPN.IN_FEATURES] + ["p6", "p7"]
        if used and used != made:
            yield (
                f"MODEL.RETINANET.IN_FEATURES is {used}, but the backbone makes {made}: levels that the head "
                "does not use would be computed for nothing, and levels that are not made cannot be used. "
                "Make both lists agree (MODEL.FPN.IN_FEATURES decides where the pyramid starts)"
            )


def _loss_key_problems(cfg, default):
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


def _as_lists(value):
    # YAML has no tuples: the config.yaml of a training has lists where the defaults have tuples within tuples.
    return [_as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
