"""The detector: parts that registries built, wired together (section 4, figure 3).

Shapes: N images, L levels, A anchors a cell, R anchors in all, K classes, G boxes of an image.
Labels are integers: 0..K-1 a class, K background, -1 ignored.
"""

from functools import partial

import torch
from detectron2.config import configurable
from detectron2.evaluation import inference_context
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F

from retina_plugin.config.checks import check_model_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.losses import LossNormalizer, build_classification_loss
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid
from retina_plugin.modeling.assigners.max_iou import AnchorMatcher
from retina_plugin.modeling.backbones.frozen_bn import fold_frozen_bn
from retina_plugin.modeling.box_loss import BoxRegressionLoss
from retina_plugin.modeling.head import build_retinanet_head, per_anchor
from retina_plugin.modeling.inference.postprocessor import Postprocessor
from retina_plugin.modeling.precision import autocast, check_precision


@META_ARCH_REGISTRY.register()
class FocalRetinaNet(DenseDetector):
    """RetinaNet (Lin et al. 2017) with the input, output and parameter names of Detectron2's ``RetinaNet``.

    With default keys and equal weights it gives the losses, gradients and detections of Detectron2's own.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone,
        head,
        head_in_features,
        anchor_generator,
        num_classes,
        # Loss parts:
        anchor_matcher,
        classification_loss,
        box_regression_loss,
        loss_normalizer,
        # Inference parts:
        postprocessor,
        inference_precision="fp32",
        # Input and visualization:
        pixel_mean,
        pixel_std,
        input_format="BGR",
        vis_period=0,
        log_period=0,
        # Memory:
        channels_last=False,
    ):
        """
        Args:
            backbone: a Detectron2 ``Backbone``.
            head: module, features -> (logits, deltas); see :class:`RetinaNetHead`.
            head_in_features: names of the L backbone features that the head sees, high resolution first.
            anchor_generator: a Detectron2 anchor generator for these features.
            num_classes: K, without background.
            anchor_matcher: (``Boxes`` of R anchors, ``Boxes`` of G boxes, their ``AnchorGrid`` or None) -> indices and
                labels; see :class:`AnchorMatcher`.
            classification_loss: module; see :mod:`retina_plugin.losses.registry`.
            box_regression_loss: module; see :class:`BoxRegressionLoss`.
            loss_normalizer: module, number of positives -> divisor; see :class:`LossNormalizer`.
            postprocessor: predictions -> detections; see :class:`Postprocessor`.
            inference_precision: what backbone and head compute in; see :mod:`retina_plugin.modeling.precision`.
            pixel_mean, pixel_std: one number a channel, in the order of ``input_format``.
            input_format: channel order of the images, "BGR" or "RGB" (for visualization only).
            vis_period: draw ground truth and detections of one training image every so many iterations;
                0 never.
            log_period: put the positive anchors of each level into the event storage every so many iterations, in
                those that a log prints; 0 never.
            channels_last: keep images, weights and activations of backbone and head in memory with a pixel's
                channels side by side.

        Raises:
            ValueError: unknown inference_precision.
        """
        check_precision(inference_precision)
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.anchor_generator = anchor_generator
        self.num_classes = num_classes
        self.anchor_matcher = anchor_matcher
        self.classification_loss = classification_loss
        self.box_regression_loss = box_regression_loss
        self.loss_normalizer = loss_normalizer
        self.postprocessor = postprocessor
        self.inference_precision = inference_precision
        self.input_format = input_format
        self.vis_period = vis_period
        self.log_period = log_period
        self.channels_last = channels_last
        if channels_last:
            for part in (backbone, head):
                part.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg):
        check_model_config(cfg)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        absent = [f for f in cfg.MODEL.RETINANET.IN_FEATURES if f not in shapes]
        if absent:
            raise ConfigError([f"MODEL.RETINANET.IN_FEATURES has {absent}, but the backbone makes {list(shapes)}"])
        if cfg.MODEL.BACKBONE.FOLD_FROZEN_BN and not fold_frozen_bn(backbone):
            raise ConfigError([
                "MODEL.BACKBONE.FOLD_FROZEN_BN is True, but the backbone has no convolution with a FrozenBN behind it. "
                "Set it to False"
            ])  # fmt: skip
        feature_shapes = [shapes[f] for f in cfg.MODEL.RETINANET.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": build_retinanet_head(cfg, feature_shapes),
            "head_in_features": cfg.MODEL.RETINANET.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "anchor_matcher": AnchorMatcher(cfg),
            "classification_loss": build_classification_loss(cfg),
            "box_regression_loss": BoxRegressionLoss(cfg),
            "loss_normalizer": LossNormalizer(cfg.MODEL.RETINANET.LOSS_NORMALIZER),
            "postprocessor": Postprocessor(cfg),
            "inference_precision": cfg.TEST.PRECISION,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "log_period": cfg.LOG_PERIOD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    def forward(self, batched_inputs):
        """
        Args:
            batched_inputs: list of N dicts of Detectron2's ``DatasetMapper``: ``image`` (C, H, W), in training
                ``instances`` with ``gt_boxes`` and ``gt_classes`` and optionally the ``padded_size`` (height, width)
                that the images are padded to at least, in inference optionally the ``height`` and ``width`` of the
                output.

        Returns:
            In training a dict of 0-dim float32 tensors ``loss_cls`` and ``loss_box_reg``; in inference a list
            of N dicts with ``instances`` (``pred_boxes``, ``scores``, ``pred_classes``).

        Raises:
            ValueError: in training, an image without ``instances`` or with a class outside 0..K-1.
        """
        if not self.training:
            with autocast(self.device.type, self.inference_precision):
                return super().forward(batched_inputs)
        self._check_ground_truth(batched_inputs)
        losses = super().forward(batched_inputs)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self._draw_training_image(batched_inputs[0])
        return losses

    def preprocess_image(self, batched_inputs):
        images = super().preprocess_image(batched_inputs)
        if "padded_size" in batched_inputs[0]:
            images.tensor = self._pad(images.tensor, *batched_inputs[0]["padded_size"])
        if self.channels_last:
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def _pad(self, images, height, width):
        # Padding has anchors, and they count: a batch that comes in parts is padded as a whole.
        stride = max(self.backbone.size_divisibility, 1)
        below = -(-height // stride) * stride - images.shape[-2]
        beside = -(-width // stride) * stride - images.shape[-1]
        return F.pad(images, (0, max(beside, 0), 0, max(below, 0)))

    def forward_training(self, images, features, predictions, gt_instances):
        logits, deltas = self._by_anchor(predictions)
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def forward_inference(self, images, features, predictions):
        with torch.autocast(self.device.type, enabled=False):  # half precision is for backbone and head
            logits, deltas = self._by_anchor(predictions)
            return self.postprocessor(self.anchor_generator(features), logits, deltas, images.image_sizes)

    def _by_anchor(self, predictions):
        logits, deltas = predictions
        return [per_anchor(x, self.num_classes) for x in logits], [per_anchor(x, 4) for x in deltas]

    @torch.no_grad()
    def label_anchors(self, anchors, gt_instances):
        """Assign a label and a box to every anchor of every image.

        Args:
            anchors: list of L ``Boxes``, R in all.
            gt_instances: list of N ``Instances`` with ``gt_boxes`` and ``gt_classes``.

        Returns:
            gt_labels: int64 (N, R).
            gt_boxes: float (N, R, 4), XYXY in pixels, meaningful where gt_labels is a class.
        """
        grid = AnchorGrid.find(anchors, getattr(self.anchor_generator, "num_cell_anchors", None))
        anchors = Boxes.cat(anchors)
        shape = (len(gt_instances), len(anchors))
        gt_labels = torch.full(shape, self.num_classes, dtype=torch.int64, device=anchors.device)
        gt_boxes = anchors.tensor.new_zeros(*shape, 4)
        for labels, boxes, instances in zip(gt_labels, gt_boxes, gt_instances):
            matched_idxs, match_labels = self.anchor_matcher(anchors, instances.gt_boxes, grid)
            if len(instances) > 0:
                torch.index_select(instances.gt_classes, 0, matched_idxs, out=labels)
                torch.index_select(instances.gt_boxes.tensor, 0, matched_idxs, out=boxes)
                labels.masked_fill_(match_labels == 0, self.num_classes)
            labels.masked_fill_(match_labels == -1, -1)
        return gt_labels, gt_boxes

    def losses(self, anchors, logits, gt_labels, deltas, gt_boxes):
        """
        Args:
            anchors: list of L ``Boxes``.
            logits, deltas: lists of L tensors (N, Hl, Wl, A, K) and (N, Hl, Wl, A, 4).
            gt_labels, gt_boxes: of :meth:`label_anchors`.

        Returns:
            dict of ``loss_cls`` and ``loss_box_reg``, both divided by the normalizer.
        """
        cells = [x.shape[1:4] for x in logits]
        labels_by_level = [
            labels.unflatten(1, cell)
            for labels, cell in zip(gt_labels.split([cell.numel() for cell in cells], dim=1), cells)
        ]
        positive = (gt_labels >= 0) & (gt_labels != self.num_classes)  # (N, R)
        num_positives = positive.sum()
        self._log_positives(positive, num_positives, cells)
        normalizer = self.loss_normalizer(num_positives)

        decode_boxes = partial(self._decode_boxes, anchors, deltas)
        loss_cls = self.classification_loss(logits, labels_by_level, decode_boxes, normalizer)
        loss_box_reg = self.box_regression_loss(
            torch.cat([x.flatten(1, 3) for x in deltas], dim=1), Boxes.cat(anchors).tensor, gt_boxes, positive
        )
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg / normalizer}

    def _log_positives(self, positive, num_positives, cells):
        """Put positive anchors an image into the event storage: in all, and of each level when a line is due."""
        storage, num_images = get_event_storage(), len(positive)
        is_whole_step = getattr(self.loss_normalizer, "parts", None) is None  # who runs it in parts logs its count
        if self.log_period > 0 and (storage.iter + 1) % self.log_period == 0:
            by_level = positive.split([cell.numel() for cell in cells], dim=1)
            counts = torch.stack([level.sum() for level in by_level]).tolist()  # the one wait for a GPU, as below
            num_positives = sum(counts)
            for name, count in zip(self.head_in_features, counts):
                storage.put_scalar(f"num_pos_anchors_{name}", count / num_images, smoothing_hint=False)
        if is_whole_step:
            storage.put_scalar("num_pos_anchors", num_positives / num_images)

    @torch.no_grad()
    def _decode_boxes(self, anchors, deltas):
        return [self.box_regression_loss.decode(d, a.tensor.view(d.shape[1:])) for a, d in zip(anchors, deltas)]

    def _check_ground_truth(self, batched_inputs):
        # Before anything moves to the GPU: there, a class that does not exist is an assertion without a name.
        for i, image in enumerate(batched_inputs):
            name = image.get("file_name", f"number {i} of the batch")
            if "instances" not in image:
                raise ValueError(f"image {name} has no 'instances': training needs ground truth")
            classes = image["instances"].gt_classes
            if len(classes) and not 0 <= classes.min() <= classes.max() < self.num_classes:
                raise ValueError(
                    f"image {name} has class {classes.min().item()}..{classes.max().item()}, but the model "
                    f"has classes 0..{self.num_classes - 1} (MODEL.RETINANET.NUM_CLASSES is {self.num_classes}). "
                    "Set it to the data set's number of classes, and map category ids to 0..K-1."
                )

    def _draw_training_image(self, image):
        if not comm.is_main_process():
            return
        with inference_context(self), torch.no_grad():
            detections = super().forward([{"image": image["image"]}])[0]["instances"]
        self.visualize_training([image], [detections])
