"""From a loss of one anchor and one class to the loss of the detector: a sum over classes, anchors and levels."""

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from retina_plugin.losses.fused import FusedLoss, SigmoidLossFamily, kernel_for
from retina_plugin.losses.sigmoid import alpha_weights, balance, check_alpha, signed_logits


@dataclass(frozen=True)
class PointwiseLoss:
    """The loss of one anchor and one class, without alpha: ``formula(x_t, **settings)``, elementwise.

    curve: the same for the kernels; None: they do not have it.
    """

    formula: Callable
    settings: dict = field(default_factory=dict)
    curve: SigmoidLossFamily | None = None

    def __call__(self, x_t):
        return self.formula(x_t, **self.settings)


def sum_over_levels(loss, logits, labels, *, alpha, fused, divisor=1.0, expected=None):
    """Sum a loss over levels, anchors and classes, and divide it.

    Args:
        loss: a :class:`PointwiseLoss`.
        logits: list of L float tensors (..., K). Half precision is computed in float32.
        labels: list of L integer tensors (...): 0..K-1 a class, K background, -1 ignored.
        alpha: see :func:`retina_plugin.losses.sigmoid.alpha_weights`.
        fused: compute value and gradient in one pass (:mod:`retina_plugin.losses.fused`) where there is a kernel for
            the loss and the device. Otherwise, under ``torch.compile``, and if False, the formula and autograd.
        divisor: number or 0-dim tensor, a constant for the gradient.
        expected: see :class:`retina_plugin.losses.fused.FusedLoss`. None: a gradient of 1.

    Returns:
        0-dim tensor, float32 (float64 for float64 logits).

    Raises:
        ValueError: alpha out of range, or not K of them.
    """

    def plain(logits):
        return sum(_plain_sum(loss, x, y, alpha) for x, y in zip(logits, labels))

    if not _has_kernel(loss, logits, alpha, fused):
        return plain(logits) / divisor
    if expected is None:
        expected = logits[0].new_ones((), dtype=torch.float32)
    one_pass = FusedLoss(kernel_for(logits), loss.curve, alpha_weights(alpha, logits[0]), plain)
    return one_pass(logits, labels, divisor, expected)


def _has_kernel(loss, logits, alpha, fused):
    if not fused or loss.curve is None or kernel_for(logits) is None:
        return False
    alpha_learns = isinstance(alpha, torch.Tensor) and alpha.requires_grad  # the kernels hold it constant
    # A compiler fuses the formula by itself, and could not look into a kernel.
    return not alpha_learns and not torch.compiler.is_compiling()


def _plain_sum(loss, logits, labels, alpha):
    x_t, is_class = signed_logits(logits, labels)
    return balance(loss(x_t), is_class, alpha).sum()


class MultiLevelLoss(nn.Module):
    """A loss as the registry promises it (:mod:`retina_plugin.losses.registry`), from that of one anchor and class."""

    def __init__(self, loss, *, alpha, fused=True):
        """
        Args:
            loss: a :class:`PointwiseLoss`.
            alpha, fused: see :func:`sum_over_levels`.

        Raises:
            ValueError: alpha out of range.
        """
        super().__init__()
        check_alpha(alpha)
        self.loss = loss
        self.fused = fused
        if alpha is None or isinstance(alpha, numbers.Real):
            self.alpha = alpha
        else:  # a buffer, so that it lies where the logits are
            self.register_buffer("alpha", torch.as_tensor(alpha, dtype=torch.float32), persistent=False)
        self.expected = torch.ones(())  # see FusedLoss; nothing that a result depends on

    def forward(self, logits, labels, decode_boxes, normalizer=1.0):
        if self.expected.device != logits[0].device:
            self.expected = torch.ones((), device=logits[0].device)
        return sum_over_levels(
            self.loss,
            logits,
            labels,
            alpha=self.alpha,
            fused=self.fused,
            divisor=normalizer,
            expected=self.expected,
        )

    def extra_repr(self):
        alpha = self.alpha.tolist() if isinstance(self.alpha, torch.Tensor) else self.alpha
        settings = {"alpha": alpha, **self.loss.settings, "fused": self.fused}
        return ", ".join(f"{name}={value}" for name, value in settings.items())
