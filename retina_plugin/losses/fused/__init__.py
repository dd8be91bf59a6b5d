"""Classification losses in one pass: logits and labels are read once, loss and gradient are written.

A plain loss makes about ten tensors of the logits' size (64 MB for one 800x1344 image and 80 classes) and reads them
again in its backward pass; here the gradient is the only one. The paper's losses without a kink are one family of three
numbers (:class:`SigmoidLossFamily`), which :mod:`.cpu` computes in blocks that fit a cache, and :mod:`.gpu` in a Triton
kernel. Both see the logits as they lie in memory (:mod:`.layout`), and :mod:`.one_pass` makes either of them a function
that autograd knows.
"""

from retina_plugin.losses.fused.autograd import FusedLoss, kernel_for
from retina_plugin.losses.fused.family import SigmoidLossFamily

__all__ = ["FusedLoss", "SigmoidLossFamily", "kernel_for"]
