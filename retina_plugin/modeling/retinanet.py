"""The detector: parts that registries built, wired together (section 4, figure 3).

N images, L levels, A anchors a cell, R anchors in all, K classes; level l has Hl x Wl cells.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.evaluation import inference_context
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from retina_plugin.config.checks import check_model_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.losses import ClassificationLoss, LossContext, LossNormalizer, Targets, build_classification_loss
from retina_plugin.modeling.anchor_layout import anchors_of_size, level_shapes, padded_size
from retina_plugin.modeling.assigners import Assigner, build_assigner
from retina_plugin.modeling.backbones.frozen_bn import fold_frozen_bn
from retina_plugin.modeling.box_coder import BoxCoder, build_box_coder
from retina_plugin.modeling.box_loss import BoxLoss, build_box_loss
from retina_plugin.modeling.detectron2_attributes import Detectron2Attributes
from retina_plugin.modeling.ground_truth import check_ground_truth
from retina_plugin.modeling.head import as_head_output, build_retinanet_head, per_anchor
from retina_plugin.modeling.inference.postprocessor import Postprocessor
from retina_plugin.modeling.precision import autocast, check_precision
from retina_plugin.modeling.predictions import RawPredictions
from retina_plugin.modeling.scripting import ScriptableRetinaNet, refuse_torch_export

# Images as Detectron2's ``DatasetMapper`` makes them.
Inputs = list[dict[str, Any]]


@META_ARCH_REGISTRY.register()
class FocalRetinaNet(Detectron2Attributes, RetinaNet):
    """RetinaNet (Lin et al. 2017) with the input, output and parameter names of Detectron2's ``RetinaNet``.

    With default keys and equal weights it gives the losses, gradients and detections of Detectron2's own. It has
    Detectron2's attributes as well (:mod:`.detectron2_attributes`).
    """

    reads_retinanet_keys = True  # what configuration checks ask of an architecture

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        num_classes: int,
        # Loss parts:
        assigner: Assigner,
        classification_loss: ClassificationLoss,
        box_coder: BoxCoder,
        box_loss: BoxLoss,
        loss_normalizer: nn.Module,
        # Inference parts:
        postprocessor: Postprocessor,
        inference_precision: str = "fp32",
        # Input and visualization:
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
        vis_period: int = 0,
        # Memory:
        channels_last: bool = False,
    ):
        """
        Args:
            backbone: makes the features.
            head: module, features -> :class:`.head.HeadOutput` or a pair (logits, deltas).
            head_in_features: names of the L backbone features that the head sees, high resolution first.
            anchor_generator: a Detectron2 anchor generator for these features.
            num_classes: K, without background.
            assigner: gives every anchor its label and box; see :mod:`.assigners`.
            classification_loss: see :mod:`retina_plugin.losses.registry`.
            box_coder: how deltas and boxes belong together; the one that ``box_loss`` and ``postprocessor`` have.
            box_loss: see :mod:`.box_loss`.
            loss_normalizer: module, number of positives -> divisor of both losses; see :class:`LossNormalizer`.
            postprocessor: predictions -> detections.
            inference_precision: what backbone and head compute in for inference; see :mod:`.precision`.
            pixel_mean, pixel_std: one number a channel, in the order of ``input_format``.
            input_format: channel order of the images, "BGR" or "RGB" (for visualization only).
            vis_period: draw ground truth and detections of one training image every so many iterations; 0 never.
            channels_last: keep images, weights and activations of backbone and head in memory with a pixel's channels
                side by side.

        Raises:
            ValueError: unknown inference_precision.
        """
        check_precision(inference_precision)
        # What RetinaNet's own __init__ would set are settings of the parts here.
        super(RetinaNet, self).__init__(
            backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.num_classes = num_classes
        self.assigner = assigner
        self.classification_loss = classification_loss
        self.box_coder = box_coder
        self.box_loss = box_loss
        self.loss_normalizer = loss_normalizer
        self.postprocessor = postprocessor
        self.inference_precision = inference_precision
        self.input_format = input_format
        self.vis_period = vis_period
        self.channels_last = channels_last
        if channels_last:
            for part in (backbone, head):
                part.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_model_config(cfg)
        backbone = build_backbone(cfg)
        feature_shapes = level_shapes(backbone, cfg.MODEL.RETINANET.IN_FEATURES)
        if cfg.MODEL.BACKBONE.FOLD_FROZEN_BN and not fold_frozen_bn(backbone):
            raise ConfigError([
                "MODEL.BACKBONE.FOLD_FROZEN_BN is True, but the backbone has no convolution with a FrozenBN behind it. "
                "Set it to False"
            ])  # fmt: skip
        box_coder = build_box_coder(cfg)
        return {
            "backbone": backbone,
            "head": build_retinanet_head(cfg, feature_shapes),
            "head_in_features": cfg.MODEL.RETINANET.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "assigner": build_assigner(cfg),
            "classification_loss": build_classification_loss(cfg),
            "box_coder": box_coder,
            "box_loss": build_box_loss(cfg, box_coder),
            "loss_normalizer": LossNormalizer(cfg.MODEL.RETINANET.LOSS_NORMALIZER),
            "postprocessor": Postprocessor(cfg, box_coder),
            "inference_precision": cfg.TEST.PRECISION,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    def forward(
        self, batched_inputs: Inputs, targets: Targets | None = None, divisor: Tensor | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: list of N dicts of Detectron2's ``DatasetMapper``: ``image`` (C, H, W), in training
                ``instances`` with ``gt_boxes`` and ``gt_classes`` and optionally the ``padded_size`` (height, width)
                that the images are padded to at least, in inference optionally the ``height`` and ``width`` of the
                output.
            targets, divisor: see :meth:`compute_losses`.

        Returns:
            In training a dict of 0-dim float32 tensors ``loss_cls`` and ``loss_box_reg``; in inference a list
            of N dicts with ``instances`` (``pred_boxes``, ``scores``, ``pred_classes``).

        Raises:
            ValueError: see :meth:`compute_losses`.
        """
        if not self.training:
            refuse_torch_export()
            with autocast(self.device.type, self.inference_precision):
                return super().forward(batched_inputs)
        losses = self.compute_losses(batched_inputs, targets, divisor)
        storage = _event_storage()
        if storage is not None and self.vis_period > 0 and storage.iter % self.vis_period == 0:
            self._draw_training_image(batched_inputs[0])
        return losses

    def __prepare_scriptable__(self) -> nn.Module:
        return ScriptableRetinaNet(self)

    @property
    def assigns_before_forward(self) -> bool:
        """Whether :meth:`assign` works, which it does unless the assigner looks at predictions."""
        return not getattr(self.assigner, "needs_predictions", False)

    @torch.no_grad()
    def assign(self, batched_inputs: Inputs) -> Targets:
        """Assign a label and a box to every anchor of a batch, before and without any forward pass.

        Counting the positives of a whole step first is what lets the losses of its micro-batches have one divisor.

        Raises:
            ValueError: an image without ``instances`` or with a class outside 0..K-1.
        """
        return self._assign(batched_inputs, self._anchors_of(batched_inputs))

    def compute_losses(
        self, batched_inputs: Inputs, targets: Targets | None = None, divisor: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch, in training and in evaluation mode alike.

        Args:
            batched_inputs: see :meth:`forward`.
            targets: of :meth:`assign`; None to assign here.
            divisor: what both losses are divided by, a number or a 0-dim tensor > 0; None to ask the loss normalizer
                about this batch.

        Returns:
            dict of 0-dim float32 tensors ``loss_cls`` and ``loss_box_reg``.

        Raises:
            ValueError: an image without ``instances`` or with a class outside 0..K-1; ``targets`` of another number of
                anchors than the features have.
        """
        raw = self._predict(batched_inputs)
        if targets is None:
            targets = self._assign(batched_inputs, raw.anchors, raw)
            self._log_positives(targets)
        self._check_targets(targets, raw)
        if divisor is None:
            divisor = self.loss_normalizer(targets.num_positives(self.num_classes))
        loss_cls = self.classification_loss(raw.logits, targets, LossContext(lambda: self._decode(raw)), divisor)
        loss_box_reg = self.box_loss(
            torch.cat([x.flatten(1, 3) for x in raw.deltas], dim=1),
            Boxes.cat(raw.anchors).tensor,
            targets.boxes,
            targets.is_positive(self.num_classes),
        )
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg / divisor}

    def raw_predictions(self, batched_inputs: Inputs) -> RawPredictions:
        """Predict logits and deltas of every anchor, in ``inference_precision`` in evaluation mode."""
        with autocast(self.device.type, "fp32" if self.training else self.inference_precision):
            return self._predict(batched_inputs)

    def num_positives_by_level(self, batched_inputs: Inputs, targets: Targets) -> Tensor:
        """Count the positive anchors of each level, given the targets that :meth:`assign` made for a batch.

        Returns:
            int64 tensor (L,).
        """
        levels = targets.is_positive(self.num_classes).split([len(a) for a in self._anchors_of(batched_inputs)], dim=1)
        return torch.stack([level.sum() for level in levels])

    def preprocess_image(self, batched_inputs: Inputs) -> ImageList:
        images = super().preprocess_image(batched_inputs)
        if "padded_size" in batched_inputs[0]:
            # Padding has anchors, and they count: a batch that comes in parts is padded as a whole.
            height, width = self._padded_size(batched_inputs)
            padding = (0, width - images.tensor.shape[-1], 0, height - images.tensor.shape[-2])
            images.tensor = F.pad(images.tensor, padding)
        if self.channels_last:
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        with torch.autocast(self.device.type, enabled=False):  # half precision is for backbone and head
            raw = self._by_anchor(images, features, predictions)
            return self.postprocessor(raw.anchors, raw.logits, raw.deltas, raw.image_sizes)

    def _predict(self, batched_inputs: Inputs) -> RawPredictions:
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        return self._by_anchor(images, features, self.head(features))

    def _by_anchor(self, images: ImageList, features: list[Tensor], predictions: Any) -> RawPredictions:
        output = as_head_output(predictions)
        return RawPredictions(
            self.anchor_generator(features),
            [per_anchor(x, self.num_classes) for x in output.logits],
            [per_anchor(x, 4) for x in output.deltas],
            images.image_sizes,
            output.extra,
        )

    @torch.no_grad()
    def _assign(self, batched_inputs: Inputs, anchors: list[Boxes], raw: RawPredictions | None = None) -> Targets:
        check_ground_truth(batched_inputs, self.num_classes)
        return self.assigner(
            anchors,
            [image["instances"].to(self.device) for image in batched_inputs],
            None if self.assigns_before_forward else raw,
            num_cell_anchors=getattr(self.anchor_generator, "num_cell_anchors", None),
        )

    @torch.no_grad()
    def _decode(self, raw: RawPredictions) -> list[Tensor]:
        return [self.box_coder.decode(d, a.tensor.view(d.shape[1:])) for a, d in zip(raw.anchors, raw.deltas)]

    def _anchors_of(self, batched_inputs: Inputs) -> list[Boxes]:
        """The anchors that a batch will have, by the strides of its features."""
        strides = [shape.stride for shape in level_shapes(self.backbone, self.head_in_features)]
        return anchors_of_size(self.anchor_generator, strides, self._padded_size(batched_inputs), self.device)

    def _padded_size(self, batched_inputs: Inputs) -> tuple[int, int]:
        """Height and width that :meth:`preprocess_image` pads a batch to."""
        padded = padded_size(self.backbone, [tuple(image["image"].shape[-2:]) for image in batched_inputs])
        stride = max(self.backbone.size_divisibility, 1)
        at_least = batched_inputs[0].get("padded_size", padded)
        height, width = (max(a, -(-b // stride) * stride) for a, b in zip(padded, at_least))
        return height, width

    def _check_targets(self, targets: Targets, raw: RawPredictions) -> None:
        found = sum(len(level) for level in raw.anchors)
        if targets.labels.shape[1] != found:
            cells = ", ".join(f"{name} {x.shape[1]}x{x.shape[2]}" for name, x in zip(self.head_in_features, raw.logits))
            raise ValueError(
                f"the backbone's features have {found} anchors, and {targets.labels.shape[1]} were assigned from their "
                f"strides ({cells}): a feature of stride s must have ceil(size / s) cells a side. Let the backbone's "
                "size_divisibility be a multiple of its strides"
            )

    def _log_positives(self, targets: Targets) -> None:
        if (storage := _event_storage()) is not None:
            storage.put_scalar("num_pos_anchors", targets.num_positives(self.num_classes) / len(targets.labels))

    def _draw_training_image(self, image: dict[str, Any]) -> None:
        if not comm.is_main_process():
            return
        with inference_context(self), torch.no_grad():
            detections = super().forward([{"image": image["image"]}])[0]["instances"]
        self.visualize_training([image], [detections])


def _event_storage() -> EventStorage | None:
    """Where metrics go; None in a training loop without an ``EventStorage``."""
    try:
        return get_event_storage()
    except AssertionError:
        return None
