"""The parts of RetinaNet (section 4), registered with Detectron2."""

from retina_plugin.modeling.anchors import DetectronAnchorGenerator, TorchvisionAnchorGenerator
from retina_plugin.modeling.assigners.max_iou import AnchorMatcher
from retina_plugin.modeling.backbones.resnet_fpn import build_p3p7_resnet_fpn_backbone
from retina_plugin.modeling.box_loss import BoxRegressionLoss
from retina_plugin.modeling.head import RETINANET_HEAD_REGISTRY, RetinaNetHead, build_retinanet_head
from retina_plugin.modeling.inference.postprocessor import Postprocessor
from retina_plugin.modeling.retinanet import FocalRetinaNet

__all__ = [
    "RETINANET_HEAD_REGISTRY",
    "AnchorMatcher",
    "BoxRegressionLoss",
    "DetectronAnchorGenerator",
    "FocalRetinaNet",
    "Postprocessor",
    "RetinaNetHead",
    "TorchvisionAnchorGenerator",
    "build_p3p7_resnet_fpn_backbone",
    "build_retinanet_head",
]
