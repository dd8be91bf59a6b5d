"""mmdetection's RetinaNet on a ResNet or ResNeXt (``retinanet_r50_fpn`` and its kin).

P7 is made from P6 without a ReLU between. Where mmdetection keeps a box from becoming smaller than its anchor by more
than a factor of 62.5, this detector does not: such a box differs by less than 1/62.5 of its anchor's sides.
"""

from collections.abc import Collection

from retina_plugin.checkpoint.class_remap import COCO_NAMES
from retina_plugin.checkpoint.converters.architecture import network_config, torchvision_resnet
from retina_plugin.checkpoint.converters.conversion import (
    BGR_INPUT,
    FROZEN_BN_EPS,
    INFERENCE,
    RATIO_MAJOR,
    RGB_INPUT,
    Checkpoint,
    Conversion,
    num_classes,
    rename,
    select_anchors,
    set_norm_eps,
    without_counters,
)

_RENAMES = [
    *torchvision_resnet("backbone."),
    *((rf"^neck\.lateral_convs\.{i}\.conv\.", f"backbone.fpn_lateral{i + 3}.") for i in range(3)),
    *((rf"^neck\.fpn_convs\.{i}\.conv\.", f"backbone.fpn_output{i + 3}.") for i in range(3)),
    *((rf"^neck\.fpn_convs\.{i + 3}\.conv\.", f"backbone.top_block.p{i + 6}.") for i in range(2)),
    *((rf"^bbox_head\.cls_convs\.{i}\.conv\.", f"head.cls_subnet.{2 * i}.") for i in range(4)),
    *((rf"^bbox_head\.reg_convs\.{i}\.conv\.", f"head.bbox_subnet.{2 * i}.") for i in range(4)),
    (r"^bbox_head\.retina_cls\.", "head.cls_score."),
    (r"^bbox_head\.retina_reg\.", "head.bbox_pred."),
]
_CONFIG = INFERENCE | {"MODEL.FPN.TOP_BLOCK_RELU": False}
# The two kinds of ImageNet weights that mmdetection's configurations start from.
_PYTORCH_STYLE = RGB_INPUT | {"MODEL.RESNETS.STRIDE_IN_1X1": False}
_CAFFE_STYLE = BGR_INPUT | {"MODEL.RESNETS.STRIDE_IN_1X1": True}


def recognizes(names: Collection[str]) -> bool:
    return "bbox_head.retina_cls.weight" in names


def convert(checkpoint: Checkpoint, norm_eps: float | None = None) -> Conversion:
    """Convert a checkpoint, by its ``meta`` if mmdetection wrote one; ``norm_eps`` None is 1e-5, its default."""
    model = rename(without_counters(checkpoint["model"]), _RENAMES)
    network = network_config(model)
    set_norm_eps(model, FROZEN_BN_EPS if norm_eps is None else norm_eps)
    select_anchors(model, RATIO_MAJOR)
    meta, notes = _dict_of(checkpoint, "meta"), []
    class_names = _class_names(meta)
    if class_names is None and num_classes(model) == len(COCO_NAMES):
        class_names = list(COCO_NAMES)
        notes.append("The 80 classes were taken to be COCO's, in mmdetection's order.")
    config_text = next((text for text in (meta.get("config"), meta.get("cfg")) if isinstance(text, str)), "")
    style = _CAFFE_STYLE if "caffe" in config_text else _PYTORCH_STYLE
    if not config_text:
        notes.append(
            "The file does not say what images it was trained with. They were taken to be RGB with ImageNet's mean "
            "and deviation, the stride to be in the 3x3 convolutions ('pytorch' style). For 'caffe' style set "
            "INPUT.FORMAT BGR, PIXEL_MEAN [103.53, 116.28, 123.675], PIXEL_STD [1, 1, 1] and STRIDE_IN_1X1 True."
        )
    notes.append("mmdetection keeps boxes from becoming 62.5 times smaller than their anchors; this detector does not.")
    return Conversion(model, network | style | _CONFIG, class_names, notes)


def _class_names(meta):
    dataset = _dict_of(meta, "dataset_meta")
    for names in (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")):
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def _dict_of(mapping, key):
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}
