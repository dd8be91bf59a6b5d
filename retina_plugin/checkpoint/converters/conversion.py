"""What every conversion is made of: new names, another order of anchors and classes, and a configuration.

A anchors a cell, K classes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from retina_plugin.checkpoint.compare import FLOATS
from retina_plugin.core.errors import CheckpointError

Checkpoint = Mapping[str, Any]  # with "model": name -> tensor or array, as read_checkpoint returns it
Weights = dict[str, Tensor]
Config = dict[str, Any]  # by key: {"MODEL.RESNETS.DEPTH": 50}

# Ids of COCO's 80 categories, from 1 to 90 with gaps.
COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]

# The images that ImageNet backbones were trained with, in 0..255: torchvision's, and the original ResNets'.
RGB_INPUT: Config = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
BGR_INPUT: Config = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
}
# What all sources do with the predictions of an image.
INFERENCE: Config = {
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
    "MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS": True,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
# Ours[a] is theirs[RATIO_MAJOR[a]], for three sizes and three ratios in the order that Base-RetinaNet.yaml has, too.
RATIO_MAJOR = [3 * ratio + size for size in range(3) for ratio in range(3)]

FROZEN_BN_EPS = 1e-5  # Detectron2's, without a key


@dataclass
class Conversion:
    """Converted weights, and what belongs to them.

    Attributes:
        model: all weights of the detector except the loss normalizer's.
        config: keys to be merged over Base-RetinaNet.yaml.
        class_names: K names; None if unknown.
        notes: sentences for the user: what was assumed, and what differs from the source.
    """

    model: Weights
    config: Config
    class_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def rename(weights: Mapping[str, Any], table: Sequence[tuple[str, str]]) -> Weights:
    """Apply a table of (pattern, replacement) in turn to every name.

    Raises:
        CheckpointError: two names become one, or a tensor is not of floating-point numbers.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, value in weights.items():
        new = name
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise CheckpointError(f"{origin[new]} and {name} would both become {new}")
        renamed[new], origin[new] = torch.as_tensor(value), name
        if renamed[new].dtype not in FLOATS:
            raise CheckpointError(f"{name} is {renamed[new].dtype} in the file and floating-point in the detector")
    return renamed


def select_anchors(model: Weights, order: Sequence[int]) -> None:
    """Reorder the anchors of a cell (in place): ours[a] is theirs[order[a]].

    Raises:
        CheckpointError: the weights have another number of anchors.
    """
    count = _num_anchors(model)
    if count != len(order):
        raise CheckpointError(
            f"the weights have {count} anchors a cell, and only the standard {len(order)} (three sizes, three ratios) "
            "can be converted: a file does not say in which order others are"
        )
    for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
        value = model[f"head.{name}"]
        model[f"head.{name}"] = value.unflatten(0, (count, -1))[order].flatten(0, 1)


def select_classes(model: Weights, rows: Sequence[int]) -> None:
    """Keep the classes with the given indices, in this order (in place)."""
    count = _num_anchors(model)
    for name in ("head.cls_score.weight", "head.cls_score.bias"):
        model[name] = model[name].unflatten(0, (count, -1))[:, rows].flatten(0, 1)


def num_classes(model: Weights) -> int:
    """K, by the number of outputs."""
    outputs, count = len(model["head.cls_score.bias"]), _num_anchors(model)
    if outputs % count:
        raise CheckpointError(f"{outputs} logits a cell are no multiple of its {count} anchors")
    return outputs // count


def set_norm_eps(model: Weights, eps: float) -> None:
    """Let frozen norms that add ``eps`` to the variance compute the same with Detectron2's 1e-5 (in place).

    The scale is corrected, in float64: scale / sqrt(variance + eps) stays what it was.
    """
    if eps == FROZEN_BN_EPS:
        return
    for name, variance in model.items():
        if name.endswith(".norm.running_var"):
            scale = name.replace("running_var", "weight")
            factor = ((variance.double() + FROZEN_BN_EPS) / (variance.double() + eps)).sqrt()
            model[scale] = (model[scale].double() * factor).to(model[scale].dtype)


def without_counters(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights without the batch counters of batch norms."""
    return {name: value for name, value in weights.items() if not name.endswith(".num_batches_tracked")}


def without_loss_normalizer(model: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of this plugin's detector without those that only its training needs."""
    return {name: value for name, value in model.items() if not name.startswith("loss_normalizer.")}


def _num_anchors(model: Weights) -> int:
    return len(model["head.bbox_pred.bias"]) // 4
