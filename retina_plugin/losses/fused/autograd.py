"""The kernels as a function that autograd knows."""

import functools
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch

from retina_plugin.losses.fused import cpu
from retina_plugin.losses.fused.family import SigmoidLossFamily
from retina_plugin.losses.fused.layout import as_planes, dense, labels_as_planes


def kernel_for(logits):
    """The module that computes the loss of these logits in one pass, or None where only torch itself does.

    Args:
        logits: list of L float tensors.
    """
    kinds = {(x.device.type, x.dtype) for x in logits}
    if len(kinds) != 1:
        return None
    device, dtype = kinds.pop()
    if device == "cpu":
        return cpu
    return _gpu_kernel() if device == "cuda" and dtype != torch.float64 else None


@functools.cache
def _gpu_kernel():
    if importlib.util.find_spec("triton") is None:  # torch has it on Linux
        return None
    from retina_plugin.losses.fused import triton

    return triton


class FusedLoss(NamedTuple):
    """Sum of a loss over levels, anchors and classes, divided by a number.

    The gradient is written in the forward pass, for the incoming gradient that is expected: the last one, which is 1,
    or what a ``GradScaler`` multiplies by. A backward pass that brings another writes it again. Later backward passes,
    and one that is differentiated itself (there the plain loss takes over), give what they give for any function.

    kernel: of :func:`kernel_for`.
    curve: the loss.
    weights: of positives and negatives, each a number or a tensor (K,).
    plain: function of the list of logits that has the same value.
    """

    kernel: ModuleType
    curve: SigmoidLossFamily
    weights: tuple
    plain: Callable

    def __call__(self, logits, labels, divisor, expected):
        """
        Args:
            logits: list of L tensors (..., K) in any memory order.
            labels: list of L integer tensors (...): 0..K-1 a class, K background, -1 ignored.
            divisor: number, or 0-dim tensor on the same device; a constant for the gradient.
            expected: 0-dim float tensor on the same device, the incoming gradient to expect. A backward pass leaves
                the one that came.

        Returns:
            0-dim tensor, float32 (float64 for float64 logits).
        """
        return _Function.apply(self, labels, divisor, expected, torch.is_grad_enabled(), *logits)

    def write(self, logits, labels, scale, gradient, written_scale=None):
        """Loss of a level, and its gradient; see the kernels. Of a gradient that is written already, no loss."""
        planes = as_planes(logits, logits), labels_as_planes(labels, logits).to(torch.int32)
        gradient = None if gradient is None else as_planes(gradient, logits)
        if written_scale is not None:
            return self.kernel.rewrite_gradient(*planes, self.curve, self.weights, scale, gradient, written_scale)
        return self.kernel.loss_and_gradient(*planes, self.curve, self.weights, scale, gradient)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, labels, divisor, expected, grad_enabled, *logits):
        with_gradient = grad_enabled and any(ctx.needs_input_grad)
        dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
        scale = expected.to(dtype) / divisor
        memory = [dense(x) for x in logits]
        gradients = [torch.empty_like(x) if with_gradient else None for x in memory]
        total = sum(loss.write(x, y, scale, g) for x, y, g in zip(memory, labels, gradients))
        if with_gradient:
            ctx.save_for_backward(*logits)
            ctx.loss, ctx.labels, ctx.divisor, ctx.expected = loss, labels, divisor, expected
            ctx.gradients, ctx.scale = gradients, scale
        return total / divisor

    @staticmethod
    def backward(ctx, incoming):
        logits, inputs_before = ctx.saved_tensors, (None,) * 5
        if torch.is_grad_enabled():
            return *inputs_before, *_differentiable_gradients(ctx, logits, incoming)
        # Given away: a second backward pass must not write into what the first has returned.
        gradients, ctx.gradients = ctx.gradients, None
        scale = incoming.to(ctx.scale.dtype) / ctx.divisor
        memory = [dense(x) for x in logits]
        if gradients is None:
            gradients = [torch.empty_like(x) for x in memory]
            written_scale = None
        else:
            written_scale = ctx.scale
        for x, y, gradient in zip(memory, ctx.labels, gradients):
            ctx.loss.write(x, y, scale, gradient, written_scale)
        ctx.expected.copy_(incoming)
        return *inputs_before, *gradients


def _differentiable_gradients(ctx, logits, incoming):
    wanted = [x for x in logits if x.requires_grad]
    total = ctx.loss.plain(logits) / ctx.divisor
    gradients = iter(torch.autograd.grad(total, wanted, incoming, create_graph=True))
    return [next(gradients) if x.requires_grad else None for x in logits]
