"""torchvision's ``retinanet_resnet50_fpn``, in all versions of its names, and any other ResNet in it.

Classes: the published weights have 91 outputs, one for each category id from 0, of which 11 belong to no category of
COCO and were trained as background alone. The 80 others are kept, in the order of the ids, which is that of
Detectron2's data set. Of another number of outputs all are kept: class i is torchvision's label i, 0 included, since a
file does not say whether label 0 was used.
"""

from collections.abc import Collection

from retina_plugin.checkpoint.class_remap import COCO_NAMES
from retina_plugin.checkpoint.converters.architecture import network_config, torchvision_resnet
from retina_plugin.checkpoint.converters.conversion import (
    COCO_IDS,
    INFERENCE,
    RATIO_MAJOR,
    RGB_INPUT,
    Checkpoint,
    Config,
    Conversion,
    Weights,
    num_classes,
    rename,
    select_anchors,
    select_classes,
    set_norm_eps,
    without_counters,
)

SUBNETS = {"classification_head": "cls_subnet", "regression_head": "bbox_subnet"}
# All but the towers of the head.
RENAMES = [
    *torchvision_resnet("backbone.body."),
    # In files of old versions without the 0.
    *((rf"^backbone\.fpn\.inner_blocks\.{i}\.(0\.)?", f"backbone.fpn_lateral{i + 3}.") for i in range(3)),
    *((rf"^backbone\.fpn\.layer_blocks\.{i}\.(0\.)?", f"backbone.fpn_output{i + 3}.") for i in range(3)),
    (r"^backbone\.fpn\.extra_blocks\.", "backbone.top_block."),
    (r"^head\.classification_head\.cls_logits\.", "head.cls_score."),
    (r"^head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
]
_TOWERS = [
    # Convolution i is number i.0 of a tower, and was number 2 i in old versions, as here.
    (rf"^head\.{theirs}\.conv\.{i}\.0\.", f"head.{ours}.{2 * i}.")
    for theirs, ours in SUBNETS.items()
    for i in range(4)
] + [(rf"^head\.{theirs}\.conv\.(\d)\.(weight|bias)", rf"head.{ours}.\1.\2") for theirs, ours in SUBNETS.items()]
ALL_RENAMES = [*RENAMES, *_TOWERS]

CONFIG = {
    **RGB_INPUT,
    **INFERENCE,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.ANCHOR_GENERATOR.NAME": "TorchvisionAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[float(int(x * 2 ** (i / 3))) for i in range(3)] for x in (32, 64, 128, 256, 512)],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "TEST.DETECTIONS_PER_IMAGE": 300,
}


def recognizes(names: Collection[str]) -> bool:
    return "head.classification_head.cls_logits.weight" in names and not has_norms_in_towers(names)


def has_norms_in_towers(names: Collection[str]) -> bool:
    return "head.classification_head.conv.0.1.weight" in names


def convert(checkpoint: Checkpoint, norm_eps: float | None = None) -> Conversion:
    """Convert a checkpoint; ``norm_eps`` None is 0 for frozen norms, as in the published weights, and else 1e-5."""
    weights, notes = checkpoint["model"], []
    if norm_eps is None:
        norm_eps = 1e-5 if has_batch_norms(weights) else 0.0
        if norm_eps == 0.0:
            notes.append(
                "The frozen norms were taken to add 0 to the variance, as torchvision lets those of its published "
                "weights; for weights trained from an ImageNet backbone, convert with --norm-eps 1e-5."
            )
    return convert_renamed(rename(without_counters(weights), ALL_RENAMES), norm_eps, notes)


def convert_renamed(
    model: Weights, norm_eps: float, notes: list[str], extra_config: Config | None = None
) -> Conversion:
    """Do the rest of a conversion, once the names are ours: norms, anchors, classes, configuration."""
    network_config(model)  # whether it is a RetinaNet, before anything in it is touched
    set_norm_eps(model, norm_eps)
    select_anchors(model, RATIO_MAJOR)
    class_names = None
    if num_classes(model) == 91:
        select_classes(model, COCO_IDS)
        class_names = list(COCO_NAMES)
        notes.append("Of the 91 outputs the 80 of COCO's categories are kept.")
    else:
        notes.append("Class i is torchvision's label i, 0 included. DATASETS names COCO: set your own.")
    notes.append("torchvision resizes images in floating point, Detectron2 in whole numbers.")
    return Conversion(model, network_config(model) | CONFIG | (extra_config or {}), class_names, notes)


def has_batch_norms(weights: Collection[str]) -> bool:
    return any(name.endswith(".num_batches_tracked") for name in weights)
