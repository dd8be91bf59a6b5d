"""Online hard example mining on RetinaNet's anchors (Lin et al. 2017, section 5.1; Shrivastava et al. 2016).

The only loss here that looks at boxes: of two anchors that predict nearly the same box, one is mined.
"""

import torch
from torch import nn
from torchvision.ops import box_iou, nms

from retina_plugin.losses.cross_entropy import SigmoidCrossEntropyLoss, pointwise_cross_entropy
from retina_plugin.losses.registry import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.sigmoid import alpha_from_config, balance, signed_logits


class OnlineHardExampleMining(nn.Module):
    """Cross entropy of the hardest anchors of each image; all others count as ignored.

    Each anchor is scored by its loss, summed over classes. Non-maximum suppression over the predicted boxes, whatever
    their class, leaves the anchor with the higher loss. Of those left, an image keeps the ``batch_size`` hardest. In
    the 1:3 variant (as SSD), it keeps its hardest positives, at most a quarter of ``batch_size``, and for each of them
    the three hardest negatives; an image without positives keeps three negatives.
    """

    def __init__(self, *, alpha=None, batch_size=128, nms_thresh=0.5, one_to_three=False):
        """
        Args:
            alpha: see :func:`retina_plugin.losses.sigmoid.alpha_weights`; it weighs the score as well.
            batch_size: anchors that an image keeps, at least 4.
            nms_thresh: IoU above which the anchor with the lower loss goes, in [0, 1]; 1 keeps all.
            one_to_three: keep positives and negatives 1 to 3.

        Raises:
            ValueError: a parameter out of its range.
        """
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 4:
            raise ValueError(
                f"OHEM: the batch size, in anchors an image, must be a whole number of at least 4, got {batch_size}"
            )
        if not 0 <= nms_thresh <= 1:
            raise ValueError(f"OHEM: the NMS threshold is an IoU in [0, 1], got {nms_thresh}")
        # A few hundred anchors are mined of 200,000: a pass over all logits would not pay.
        self.cross_entropy = SigmoidCrossEntropyLoss(alpha=alpha, fused=False)
        self.batch_size = batch_size
        self.nms_thresh = nms_thresh
        self.one_to_three = one_to_three

    def forward(self, logits, labels, decode_boxes, normalizer=1.0):
        return self.cross_entropy(logits, self.mine(logits, labels, decode_boxes), decode_boxes, normalizer)

    @torch.no_grad()
    def mine(self, logits, labels, decode_boxes):
        """Select the hard anchors.

        Args:
            logits, labels, decode_boxes: see :mod:`retina_plugin.losses.registry`.

        Returns:
            list of L integer tensors (N, Hl, Wl, A): the labels of the mined anchors, -1 elsewhere.
        """
        num_classes = logits[0].shape[-1]
        flat_labels = torch.cat([y.flatten(1) for y in labels], dim=1)  # (N, R)
        mined = torch.full_like(flat_labels, -1)
        boxes = torch.cat([x.flatten(1, 3) for x in decode_boxes()], dim=1)  # (N, R, 4)
        for i, image_labels in enumerate(flat_labels):
            counted = (image_labels >= 0).nonzero().squeeze(1)
            image_logits = torch.cat([x[i].flatten(0, 2) for x in logits])
            losses = self._loss_of_anchors(image_logits, image_labels)
            hard = self._hardest(losses, boxes[i, counted], image_labels[counted] < num_classes)
            mined[i, counted[hard]] = image_labels[counted[hard]]
        levels = mined.split([y[0].numel() for y in labels], dim=1)
        return [y.unflatten(1, like.shape[1:]) for y, like in zip(levels, labels)]

    def _loss_of_anchors(self, logits, labels):
        x_t, is_class = signed_logits(logits, labels)
        return balance(pointwise_cross_entropy(x_t), is_class, self.cross_entropy.alpha).sum(dim=1)

    def _hardest(self, losses, boxes, is_positive):
        # Greedy suppression, block by block from the hardest on: what it keeps does not depend on easier anchors, so
        # the first block mostly settles it. All 200,000 anchors of an image at once would take a GPU 5 GB.
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

    def _choose(self, kept, rest, is_positive):
        """Choose from ``kept`` (hardest first), and say whether those of ``rest``, which are easier, can matter."""
        if not self.one_to_three:
            return kept[: self.batch_size], len(kept) >= self.batch_size
        positives, negatives = kept[is_positive[kept]], kept[~is_positive[kept]]
        num_positives = min(len(positives), self.batch_size // 4)
        num_negatives = 3 * max(num_positives, 1)
        no_more_positives = num_positives == self.batch_size // 4 or not is_positive[rest].any()
        chosen = torch.cat([positives[:num_positives], negatives[:num_negatives]])
        return chosen, no_more_positives and len(negatives) >= num_negatives

    def extra_repr(self):
        return f"batch_size={self.batch_size}, nms_thresh={self.nms_thresh}, one_to_three={self.one_to_three}"


@CLASSIFICATION_LOSS_REGISTRY.register()
def ohem(cfg):
    return _build(cfg, one_to_three=False)


@CLASSIFICATION_LOSS_REGISTRY.register()
def ohem_1to3(cfg):
    return _build(cfg, one_to_three=True)


def _build(cfg, one_to_three):
    return OnlineHardExampleMining(
        alpha=alpha_from_config(cfg),
        batch_size=cfg.MODEL.RETINANET.OHEM_BATCH_SIZE,
        nms_thresh=cfg.MODEL.RETINANET.OHEM_NMS_THRESH,
        one_to_three=one_to_three,
    )
