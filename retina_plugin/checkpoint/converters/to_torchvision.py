"""This plugin's weights for torchvision's ``retinanet_resnet50_fpn``, with the arguments that it has by default.

Exact, or refused. Its anchors are rounded and its P6 is made from P5, so that only detectors with the configuration
that converted torchvision weights have can become one: those weights, trained further or not.
"""

import torch
from detectron2.config import CfgNode
from torchvision.models.detection import retinanet_resnet50_fpn

from retina_plugin.checkpoint.class_remap import COCO_NAMES
from retina_plugin.checkpoint.converters import torchvision
from retina_plugin.checkpoint.converters.conversion import (
    COCO_IDS,
    RATIO_MAJOR,
    Checkpoint,
    Conversion,
    num_classes,
    rename,
    select_anchors,
    without_counters,
    without_loss_normalizer,
)
from retina_plugin.config import flatten
from retina_plugin.core.errors import CheckpointError

_NEEDED = torchvision.CONFIG | {
    "MODEL.META_ARCHITECTURE": "FocalRetinaNet",
    "MODEL.BACKBONE.NAME": "build_p3p7_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.FPN.TOP_BLOCK_IN_FEATURE": "p5",
    "MODEL.FPN.TOP_BLOCK_RELU": True,
    "MODEL.FPN.SIZE_DIVISIBILITY": 32,
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RETINANET.HEAD_NAME": "RetinaNetHead",
    "MODEL.RETINANET.BOX_CODER": "delta_xywh",
    "MODEL.RETINANET.NUM_CONVS": 4,
    "MODEL.RETINANET.NORM": "",
}
_NEVER = -100.0  # a logit whose score is 0 in float32


def export(checkpoint: Checkpoint, cfg: CfgNode) -> Conversion:
    """Export a checkpoint under torchvision's names, without a configuration.

    If the file names the 80 classes of COCO, they become the 91 of torchvision; other classes get the labels 0..K-1.
    """
    values = dict(flatten(cfg))
    problems = [
        f"{key} is {values[key]} (torchvision: {needed})"
        for key, needed in _NEEDED.items()
        if _as_list(values[key]) != needed
    ]
    if problems:
        raise CheckpointError(f"torchvision's retinanet_resnet50_fpn cannot compute the same: {'; '.join(problems)}")
    model = {name: torch.as_tensor(value) for name, value in without_loss_normalizer(checkpoint["model"]).items()}
    select_anchors(model, [RATIO_MAJOR.index(a) for a in range(len(RATIO_MAJOR))])
    class_names = checkpoint.get("class_names")
    if tuple(class_names or ()) == COCO_NAMES:
        _spread_over_ids(model)
    labels = num_classes(model)
    names = _names(labels)
    if set(names.values()) != set(model):
        absent = sorted(set(names.values()) ^ set(model))[:3]
        raise CheckpointError(f"the weights are not those of retinanet_resnet50_fpn: {', '.join(absent)}, ...")
    note = f"Load them into retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes={labels})."
    return Conversion({theirs: model[ours] for theirs, ours in names.items()}, {}, class_names, [note])


def _names(labels):
    """torchvision's name -> ours, of all weights."""
    with torch.device("meta"):
        state = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=labels).state_dict()
    theirs = without_counters(state)
    return dict(zip(theirs, rename(theirs, torchvision.ALL_RENAMES)))


def _spread_over_ids(model):
    """Give class i the index COCO_IDS[i] of 91 (in place); the others never score."""
    for name, unused in (("head.cls_score.weight", 0.0), ("head.cls_score.bias", _NEVER)):
        value = model[name].unflatten(0, (-1, len(COCO_IDS)))
        spread = value.new_full((value.shape[0], 91, *value.shape[2:]), unused)
        spread[:, COCO_IDS] = value
        model[name] = spread.flatten(0, 1)


def _as_list(value):
    return list(value) if isinstance(value, tuple) else value
