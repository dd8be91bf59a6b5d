"""Online hard example mining on RetinaNet's anchors (section 5.1; Shrivastava et al. 2016)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from retina_plugin.losses.alpha import Alpha
from retina_plugin.losses.functional import weighted_loss
from retina_plugin.losses.modules import SigmoidCrossEntropyLoss, alpha_from_config
from retina_plugin.losses.registry import LossContext, register_classification_loss
from retina_plugin.losses.targets import Targets


class OnlineHardExampleMining(nn.Module):
    """Computes the cross entropy of the hardest anchors of each image; a :class:`~.registry.ClassificationLoss`.

    An anchor's hardness is its loss, summed over classes. Non-maximum suppression over the predicted boxes, whatever
    their class, keeps the harder of two overlapping anchors. Of the anchors left, an image keeps the ``batch_size``
    hardest. In the 1:3 variant (as SSD), an image keeps its hardest positives, at most a quarter of ``batch_size``, and
    for each positive the three hardest negatives; an image without positives keeps three negatives. All other anchors
    count as ignored.

    Args:
        alpha: see :mod:`retina_plugin.losses.functional`; the hardness is weighted as well.
        batch_size: anchors that an image keeps, at least 4.
        nms_thresh: NMS threshold (IoU) on predicted boxes, ranked by loss, in [0, 1]; 1 turns suppression off.
        one_to_three: keep positives and negatives 1 to 3.

    Raises:
        ValueError: a parameter out of its range.
    """

    def __init__(
        self, *, alpha: Alpha = None, batch_size: int = 128, nms_thresh: float = 0.5, one_to_three: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 4:
            raise ValueError(
                f"OHEM: the batch size, in anchors an image, must be a whole number of at least 4, got {batch_size}"
            )
        if not 0 <= nms_thresh <= 1:
            raise ValueError(f"OHEM: the NMS threshold is an IoU in [0, 1], got {nms_thresh}")
        # Not fused: a pass over all logits costs more than the formula on a few hundred of 200,000 anchors.
        self.cross_entropy = SigmoidCrossEntropyLoss(alpha=alpha, fused=False)
        self.batch_size = batch_size
        self.nms_thresh = nms_thresh
        self.one_to_three = one_to_three

    @property
    def alpha(self) -> Alpha:
        """The weight of positives, of the cross entropy and of the hardness."""
        return self.cross_entropy.alpha

    @alpha.setter
    def alpha(self, alpha: Alpha) -> None:
        self.cross_entropy.alpha = alpha

    def forward(
        self, logits: Sequence[Tensor], targets: Targets, context: LossContext, normalizer: Tensor | float
    ) -> Tensor:
        mined = replace(targets, labels=self.mine(logits, targets, context))
        return self.cross_entropy(logits, mined, context, normalizer)

    @torch.no_grad()
    def mine(self, logits: Sequence[Tensor], targets: Targets, context: LossContext) -> Tensor:
        """Select the hard anchors; returns labels (N, R) that are -1 elsewhere."""
        num_classes = logits[0].shape[-1]
        mined = torch.full_like(targets.labels, -1)
        boxes = torch.cat([x.flatten(1, 3) for x in context.decode_boxes()], dim=1)  # (N, R, 4)
        for i, labels in enumerate(targets.labels):
            counted = (labels >= 0).nonzero().squeeze(1)
            image_logits = torch.cat([x[i].flatten(0, 2) for x in logits])
            scores = None if targets.scores is None else targets.scores[i]
            pointwise, alpha = self.cross_entropy.loss, self.cross_entropy.alpha
            losses = weighted_loss(pointwise, image_logits, labels, alpha, scores).sum(dim=1)
            hard = self._select_hardest(losses, boxes[i, counted], labels[counted] < num_classes)
            mined[i, counted[hard]] = labels[counted[hard]]
        return mined

    def _select_hardest(self, losses: Tensor, boxes: Tensor, is_positive: Tensor) -> Tensor:
        # Greedy suppression in blocks, hardest anchors first. Easier anchors do not change which harder ones are kept,
        # so the first block is usually enough. All 200,000 anchors of an image at once would take 5 GB on a GPU.
        rest = losses.argsort(descending=True, stable=True)
        kept = rest[:0]
        while True:
            block, rest = rest[: 8 * self.batch_size], rest[8 * self.batch_size :]
            for harder in kept.split(2048):  # few enough for a cache
                block = block[~(box_iou(boxes[block], boxes[harder]) > self.nms_thresh).any(dim=1)]
            kept = torch.cat([kept, block[nms(boxes[block], losses[block].to(boxes.dtype), self.nms_thresh)]])
            chosen, is_final = self._choose(kept, rest, is_positive)
            if is_final or len(rest) == 0:
                return chosen

    def _choose(self, kept: Tensor, rest: Tensor, is_positive: Tensor) -> tuple[Tensor, bool]:
        """Choose from ``kept`` (hardest first); also return whether the easier anchors in ``rest`` cannot matter."""
        if not self.one_to_three:
            return kept[: self.batch_size], len(kept) >= self.batch_size
        positives, negatives = kept[is_positive[kept]], kept[~is_positive[kept]]
        num_positives = min(len(positives), self.batch_size // 4)
        num_negatives = 3 * max(num_positives, 1)
        no_more_positives = num_positives == self.batch_size // 4 or not is_positive[rest].any()
        chosen = torch.cat([positives[:num_positives], negatives[:num_negatives]])
        return chosen, no_more_positives and len(negatives) >= num_negatives

    def extra_repr(self) -> str:
        return f"batch_size={self.batch_size}, nms_thresh={self.nms_thresh}, one_to_three={self.one_to_three}"


@register_classification_loss("OHEM_BATCH_SIZE", "OHEM_NMS_THRESH")
def ohem(cfg: CfgNode, one_to_three: bool = False) -> OnlineHardExampleMining:
    return OnlineHardExampleMining(
        alpha=alpha_from_config(cfg),
        batch_size=cfg.MODEL.RETINANET.OHEM_BATCH_SIZE,
        nms_thresh=cfg.MODEL.RETINANET.OHEM_NMS_THRESH,
        one_to_three=one_to_three,
    )


@register_classification_loss("OHEM_BATCH_SIZE", "OHEM_NMS_THRESH")
def ohem_1to3(cfg: CfgNode) -> OnlineHardExampleMining:
    return ohem(cfg, one_to_three=True)
