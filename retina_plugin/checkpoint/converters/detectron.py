"""Detectron (1), written in Caffe2: the RetinaNets of its model zoo, with sigmoid outputs.

Its boxes end with their last pixel, those of Detectron2 one further. With anchors that do the same, the arithmetic of
deltas is the same, and boxes differ by this 1 in their lower right corner alone (in pixels of the network's input).

What is not the same: it lets candidates of P7 pass whatever their score is, of which those below the threshold are
missing here; and of a box beyond the border it keeps the last pixel.
"""

import re
from collections.abc import Collection

from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

from retina_plugin.checkpoint.class_remap import COCO_NAMES
from retina_plugin.checkpoint.converters.architecture import network_config
from retina_plugin.checkpoint.converters.conversion import (
    FROZEN_BN_EPS,
    INFERENCE,
    Checkpoint,
    Conversion,
    num_classes,
    rename,
    select_anchors,
)
from retina_plugin.core.errors import CheckpointError

# After Detectron2's own renames, which know everything but RetinaNet's parts.
_RENAMES = [
    (r"^(stem|res\d)\.", r"backbone.bottom_up.\1."),
    (r"^fpn_(lateral|output)(\d)\.", r"backbone.fpn_\1\2."),
    (r"^fpn\.([67])\.", r"backbone.top_block.p\1."),
    *((rf"^retnet\.cls\.conv\.n{i}\.fpn3\.", f"head.cls_subnet.{2 * i}.") for i in range(4)),
    *((rf"^retnet\.bbox\.conv\.n{i}\.fpn3\.", f"head.bbox_subnet.{2 * i}.") for i in range(4)),
    (r"^retnet\.cls\.pred\.fpn3\.", "head.cls_score."),
    (r"^retnet\.bbox\.pred\.fpn3\.", "head.bbox_pred."),
]
_OF_THE_NETWORK = re.compile(r"conv1_w$|res|fpn_|retnet_")
# Size-major as ours, with the ratios 1, 2, 0.5 where ours are 0.5, 1, 2.
_ANCHOR_ORDER = [3 * size + ratio for size in range(3) for ratio in (2, 0, 1)]

_CONFIG = INFERENCE | {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.FPN.SIZE_DIVISIBILITY": 128,
    "MODEL.ANCHOR_GENERATOR.NAME": "DetectronAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.11,
}


def recognizes(names: Collection[str]) -> bool:
    return "retnet_cls_pred_fpn3_w" in names


def convert(checkpoint: Checkpoint, norm_eps: float | None = None) -> Conversion:
    """Convert a checkpoint; ``norm_eps`` must be None, as Detectron's norms are merged into a scale and a shift."""
    if norm_eps is not None:
        raise CheckpointError("Detectron's norms are a scale and a shift: nothing is added to a variance (--norm-eps)")
    # A file may also hold the momenta, and layers of the ImageNet weights that nobody used.
    blobs = {k: v for k, v in checkpoint["model"].items() if _OF_THE_NETWORK.match(k) and not k.endswith("_momentum")}
    model = rename(convert_c2_detectron_names(blobs)[0], _RENAMES)
    network = network_config(model)
    if num_classes(model) == len(COCO_NAMES) + 1:
        raise CheckpointError(
            "the weights have 81 outputs an anchor, as Detectron's softmax variant for COCO with its background class; "
            "this detector, as the paper's, answers a binary question for each class"
        )
    for name, value in list(model.items()):
        if name.endswith(".norm.weight"):
            # As Detectron2 starts a FrozenBN: with the epsilon, a variance of 1.
            model.setdefault(name.replace("weight", "running_mean"), value.new_zeros(len(value)))
            model.setdefault(name.replace("weight", "running_var"), value.new_ones(len(value)) - FROZEN_BN_EPS)
    select_anchors(model, _ANCHOR_ORDER)
    class_names, notes = None, []
    if num_classes(model) == len(COCO_NAMES):
        class_names = list(COCO_NAMES)
        notes.append("The 80 classes were taken to be COCO's, in the order of their ids.")
    # Original ResNets have the stride in the 1x1 convolution, ResNeXts in the 3x3 one.
    stride = {"MODEL.RESNETS.STRIDE_IN_1X1": network.get("MODEL.RESNETS.NUM_GROUPS", 1) == 1}
    notes += [
        "Boxes end one pixel (of the network's input) further: x2 and y2 are Detectron's plus 1.",
        "Candidates of P7 with a score below SCORE_THRESH_TEST, which Detectron lets pass, are left out.",
    ]
    return Conversion(model, network | _CONFIG | stride, class_names, notes)
