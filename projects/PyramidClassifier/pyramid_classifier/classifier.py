"""A meta-architecture on the plugin's backbone. N images, K classes."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F


@META_ARCH_REGISTRY.register()
class PyramidClassifier(nn.Module):
    """Averages every level of the pyramid, concatenates the averages and classifies the result."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.backbone = build_backbone(cfg)
        channels = sum(shape.channels for shape in self.backbone.output_shape().values())
        self.classify = nn.Linear(channels, cfg.MODEL.RETINANET.NUM_CLASSES)
        self.positive_weight = cfg.MODEL.PYRAMID_CLASSIFIER.POSITIVE_WEIGHT
        self.register_buffer("mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1), persistent=False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return losses in training, otherwise the probability of each class for each image."""
        images = [(image["image"].to(self.mean.device) - self.mean) / self.std for image in batched_inputs]
        features = self.backbone(ImageList.from_tensors(images, self.backbone.size_divisibility).tensor)
        logits = self.classify(torch.cat([x.mean(dim=(2, 3)) for x in features.values()], dim=1))  # (N, K)
        if not self.training:
            return [{"probabilities": p} for p in logits.sigmoid()]
        is_there = torch.zeros_like(logits)
        for row, image in zip(is_there, batched_inputs):
            row[image["instances"].gt_classes.to(row.device)] = 1
        weight = torch.full_like(logits[0], self.positive_weight)
        return {"loss_cls": F.binary_cross_entropy_with_logits(logits, is_there, pos_weight=weight)}
