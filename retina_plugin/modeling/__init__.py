"""The parts of RetinaNet (section 4), registered with Detectron2."""

from retina_plugin.modeling.anchors import DetectronAnchorGenerator, TorchvisionAnchorGenerator
from retina_plugin.modeling.backbone import build_p3p7_resnet_fpn_backbone
from retina_plugin.modeling.box_regression import BoxRegressionLoss
from retina_plugin.modeling.head import RETINANET_HEAD_REGISTRY, RetinaNetHead, build_retinanet_head
from retina_plugin.modeling.matching import AnchorMatcher
from retina_plugin.modeling.postprocessing import Postprocessor
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
