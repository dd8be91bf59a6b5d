"""A meta-architecture of one's own on the plugin's backbone: which classes are in the image, without boxes."""

import retina_plugin  # registers the backbone builder

import torch  # isort: skip
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model


@META_ARCH_REGISTRY.register()
class PyramidClassifier(torch.nn.Module):
    """Averages every level, concatenates the levels, and classifies the result."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        channels = sum(shape.channels for shape in self.backbone.output_shape().values())
        self.classify = torch.nn.Linear(channels, cfg.MODEL.RETINANET.NUM_CLASSES)

    def forward(self, images):  # (N, 3, H, W), H and W multiples of 32 -> (N, K)
        return self.classify(torch.cat([x.mean(dim=(2, 3)) for x in self.backbone(images).values()], dim=1))


if __name__ == "__main__":
    cfg = get_cfg()
    retina_plugin.add_retina_config(cfg)
    retina_plugin.merge_config(cfg, "configs/Base-RetinaNet.yaml")
    cfg.MODEL.META_ARCHITECTURE = "PyramidClassifier"
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(cfg)
    logits = model(torch.randn(2, 3, 224, 320, device=cfg.MODEL.DEVICE))
    print(f"{', '.join(model.backbone.output_shape())} -> logits {tuple(logits.shape)}")
