"""What ``torch.jit.script`` compiles in place of the detector and its head: Detectron2's forms, with equal numbers.

TorchScript knows neither ``HeadOutput`` nor a search that depends on values. It asks a module for what to compile by
``__prepare_scriptable__``. Parameters and parts are the same objects.
"""

from typing import Any

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn

from retina_plugin.modeling.box_coder import DeltaXYWHCoder
from retina_plugin.modeling.inference.postprocessor import Postprocessor


def refuse_torch_export() -> None:
    """Raise ``RuntimeError`` under ``torch.export``: Detectron2's structures ask whether there are any detections."""
    is_exporting = getattr(torch.compiler, "is_exporting", None)  # new in torch 2.7
    if is_exporting is not None and is_exporting():
        raise RuntimeError(
            "torch.export, and torch.onnx.export with dynamo=True, cannot follow Detectron2's ImageList and Instances. "
            "Give a detectron2.export.TracingAdapter to torch.jit.trace, or to torch.onnx.export with dynamo=False"
        )


class ScriptableHead(nn.Module):
    """Computes the pair (logits, deltas) of a ``RetinaNetHead``."""

    def __init__(self, head: Any):
        super().__init__()
        self.cls_subnet, self.bbox_subnet = head.cls_subnet, head.bbox_subnet
        self.cls_score, self.bbox_pred = head.cls_score, head.bbox_pred

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute what ``RetinaNetHead.forward`` computes, besides extras."""
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        deltas = [self.bbox_pred(self.bbox_subnet(x)) for x in features]
        return logits, deltas


class ScriptableRetinaNet(RetinaNet):
    """Detectron2's ``RetinaNet`` for inference, with the parts of a ``FocalRetinaNet``."""

    __constants__ = ("training",)  # so that its branch is not compiled

    def __init__(self, model: Any):
        """
        Args:
            model: a ``FocalRetinaNet`` in evaluation mode.

        Raises:
            ValueError: it detects in a way that Detectron2's does not.
        """
        post, box_coder = model.postprocessor, model.box_coder
        obstacles = {
            "it is in training": model.training,
            "TEST.PRECISION is not fp32": model.inference_precision != "fp32",
            "its postprocessor is another one": type(post) is not Postprocessor,
            "its box coder is another one": type(box_coder) is not DeltaXYWHCoder,
            "MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS is True": getattr(post, "clip_before_nms", False),
        }
        if any(obstacles.values()):
            reasons = ", ".join(reason for reason, holds in obstacles.items() if holds)
            raise ValueError(
                f"this {type(model).__name__} cannot be scripted: {reasons}. Trace it, by torch.jit.trace of a "
                "detectron2.export.TracingAdapter"
            )
        super().__init__(
            backbone=model.backbone,
            head=model.head,
            head_in_features=model.head_in_features,
            anchor_generator=model.anchor_generator,
            box2box_transform=box_coder.transform,
            anchor_matcher=None,  # of training, which is not compiled
            num_classes=model.num_classes,
            test_score_thresh=post.score_thresh,
            test_topk_candidates=post.topk_candidates,
            test_nms_thresh=post.nms_thresh,
            max_detections_per_image=post.max_detections_per_image,
            pixel_mean=[],
            pixel_std=[],
        )
        self.pixel_mean, self.pixel_std = model.pixel_mean, model.pixel_std
        self.eval()
