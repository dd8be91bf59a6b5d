"""This plugin's weights for Detectron2's own RetinaNet, which has the same names: only the loss normalizer goes.

Exact, or refused: a detector that uses what Detectron2's own does not have cannot become one.
"""

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from retina_plugin.checkpoint.converters.conversion import Checkpoint, Conversion, without_loss_normalizer
from retina_plugin.config import flatten, get_cfg
from retina_plugin.core.errors import CheckpointError

# What Detectron2's own RetinaNet always has, in keys that this plugin adds.
_ITS_OWN = {
    "MODEL.RETINANET.HEAD_NAME": "RetinaNetHead",
    "MODEL.RETINANET.BOX_CODER": "delta_xywh",
    "MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS": False,
    "MODEL.FPN.TOP_BLOCK_IN_FEATURE": "res5",
    "MODEL.FPN.TOP_BLOCK_RELU": True,
    "MODEL.FPN.SIZE_DIVISIBILITY": 32,
}
_BACKBONES = ("build_p3p7_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")


def export(checkpoint: Checkpoint, cfg: CfgNode) -> Conversion:
    """Export a checkpoint, with the keys of its configuration that differ from Detectron2's defaults."""
    values = dict(flatten(cfg))
    problems = [f"{key} is {values[key]}" for key, needed in _ITS_OWN.items() if values[key] != needed]
    if cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet" or cfg.MODEL.BACKBONE.NAME not in _BACKBONES:
        problems.append(f"the detector is {cfg.MODEL.META_ARCHITECTURE} on {cfg.MODEL.BACKBONE.NAME}")
    if cfg.MODEL.ANCHOR_GENERATOR.NAME != "DefaultAnchorGenerator":
        problems.append(f"MODEL.ANCHOR_GENERATOR.NAME is {cfg.MODEL.ANCHOR_GENERATOR.NAME}")
    if problems:
        raise CheckpointError(f"Detectron2's own RetinaNet cannot compute the same: {'; '.join(problems)}")

    defaults, plugins = dict(flatten(get_detectron2_cfg())), dict(flatten(get_cfg()))
    keys = {key: value for key, value in values.items() if key in defaults and value != defaults[key]}
    keys |= {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "VERSION": values["VERSION"],
    }
    notes = [
        f"{key} {value} is not known to Detectron2, which would train otherwise."
        for key, value in values.items()
        if key not in defaults and key.startswith("MODEL.RETINANET.") and value != plugins.get(key)
    ]
    return Conversion(without_loss_normalizer(checkpoint["model"]), keys, checkpoint.get("class_names"), notes)
