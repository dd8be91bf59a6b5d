"""The parts of RetinaNet (section 4), registered with Detectron2 and the plugin's registries."""

from retina_plugin.config.registries import (
    ASSIGNER_REGISTRY,
    BOX_CODER_REGISTRY,
    BOX_LOSS_REGISTRY,
    RETINANET_HEAD_REGISTRY,
)
from retina_plugin.modeling.anchors import DetectronAnchorGenerator, TorchvisionAnchorGenerator
from retina_plugin.modeling.assigners import AnchorMatcher, Assigner, build_assigner
from retina_plugin.modeling.backbones.resnet_fpn import build_p3p7_resnet_fpn_backbone
from retina_plugin.modeling.backbones.timm_fpn import build_p3p7_timm_fpn_backbone
from retina_plugin.modeling.box_coder import BoxCoder, DeltaXYWHCoder, build_box_coder
from retina_plugin.modeling.box_loss import BoxLoss, BoxRegressionLoss, build_box_loss
from retina_plugin.modeling.head import Head, HeadOutput, RetinaNetHead, as_head_output, build_retinanet_head
from retina_plugin.modeling.inference.postprocessor import Postprocessor
from retina_plugin.modeling.inference.tiled import TiledInference
from retina_plugin.modeling.predictions import RawPredictions
from retina_plugin.modeling.retinanet import FocalRetinaNet

__all__ = [
    "ASSIGNER_REGISTRY",
    "BOX_CODER_REGISTRY",
    "BOX_LOSS_REGISTRY",
    "RETINANET_HEAD_REGISTRY",
    "AnchorMatcher",
    "Assigner",
    "BoxCoder",
    "BoxLoss",
    "BoxRegressionLoss",
    "DeltaXYWHCoder",
    "DetectronAnchorGenerator",
    "FocalRetinaNet",
    "Head",
    "HeadOutput",
    "Postprocessor",
    "RawPredictions",
    "RetinaNetHead",
    "TiledInference",
    "TorchvisionAnchorGenerator",
    "as_head_output",
    "build_assigner",
    "build_box_coder",
    "build_box_loss",
    "build_p3p7_resnet_fpn_backbone",
    "build_p3p7_timm_fpn_backbone",
    "build_retinanet_head",
]
