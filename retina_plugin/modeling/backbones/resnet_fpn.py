"""ResNet or ResNeXt with a feature pyramid on levels P3 to P7 (section 4, "Feature Pyramid Network Backbone")."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone

from retina_plugin.config import require_retina_config
from retina_plugin.modeling.backbones.pyramid import PaddedFPN, build_p3p7_fpn


@BACKBONE_REGISTRY.register()
def build_p3p7_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PaddedFPN:
    """Build Detectron2's ResNet and FPN with P6 and P7 on top; see :func:`.pyramid.build_p3p7_fpn`.

    ``MODEL.RESNETS`` selects ResNet-18 to 152 or ResNeXt, ``MODEL.FPN`` channels and normalization. Parameter names are
    those of Detectron2's ``build_retinanet_resnet_fpn_backbone``.
    """
    require_retina_config(cfg)
    return build_p3p7_fpn(cfg, build_resnet_backbone(cfg, input_shape))
