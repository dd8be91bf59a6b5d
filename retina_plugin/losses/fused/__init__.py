"""Fused classification losses: one pass reads logits and labels, and writes loss and gradient.

The plain formula makes about ten tensors of the logits' size (64 MB for one 800x1344 image and 80 classes), and reads
them again in the backward pass; a fused loss makes the gradient alone. The paper's smooth losses are one family of
three parameters (:mod:`.family`). One kernel is torch operators on blocks that fit a cache (:mod:`.cpu`), the other
Triton (:mod:`.triton`). Both read the logits in their memory order (:mod:`.layout`); :mod:`.autograd` differentiates.
"""

from retina_plugin.losses.fused.autograd import FusedLoss, is_transformed, kernel_for
from retina_plugin.losses.fused.family import SigmoidLossFamily, Weights

__all__ = ["FusedLoss", "SigmoidLossFamily", "Weights", "is_transformed", "kernel_for"]
