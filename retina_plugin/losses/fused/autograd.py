"""The fused kernels as a differentiable function."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from retina_plugin.losses.fused import cpu
from retina_plugin.losses.fused.family import SigmoidLossFamily, Weights
from retina_plugin.losses.fused.layout import as_planes, dense, labels_as_planes


def kernel_for(logits: Sequence[Tensor]) -> ModuleType | None:
    """Return the kernel for L float tensors, :mod:`.cpu` or :mod:`.triton`; None if neither takes them."""
    kinds = {(x.device.type, x.dtype) for x in logits}
    if len(kinds) != 1:
        return None
    device, dtype = kinds.pop()
    if device == "cpu":
        return cpu
    return _triton_kernel() if device == "cuda" and dtype != torch.float64 else None


def is_transformed(logits: Sequence[Tensor]) -> bool:
    """Whether something differentiates, batches or compiles what is computed, and cannot look into a kernel.

    That is ``torch.compile`` (which fuses the formula by itself), a transform of ``torch.func``, or forward-mode AD.
    """
    # Torch has no public function that tells of torch.func; this is what its own custom functions ask.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(x).tangent is not None for x in logits)


@functools.cache
def _triton_kernel() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:  # torch brings Triton on Linux
        return None
    from retina_plugin.losses.fused import triton

    return triton


class FusedLoss(NamedTuple):
    """Sums a loss over levels, anchors and classes, divides the sum, and computes the gradient in the forward pass.

    The gradient is written for a forecast of the incoming gradient: that of the last backward pass, which is 1 or the
    scale of a ``GradScaler``. A backward pass with another incoming gradient rewrites it. Further backward passes give
    the same results as for any function. In a backward pass that is differentiated itself, ``plain`` takes over: it
    computes the undivided loss of the logits by its formula.
    """

    kernel: ModuleType
    family: SigmoidLossFamily
    weights: Weights
    plain: Callable[[Sequence[Tensor]], Tensor]

    def __call__(
        self, logits: Sequence[Tensor], labels: Sequence[Tensor], divisor: Tensor | float, grad_scale: Tensor
    ) -> Tensor:
        """Compute the divided loss, 0-dim, float32 (float64 for float64 logits).

        Args:
            logits, labels: of L levels, (..., K) in any memory order and (...).
            divisor: number, or 0-dim tensor on the same device; a constant for the gradient.
            grad_scale: 0-dim float tensor on the same device, the forecast; a backward pass writes the actual incoming
                gradient into it.
        """
        return _Function.apply(self, labels, divisor, grad_scale, torch.is_grad_enabled(), *logits)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, labels, divisor, grad_scale, grad_enabled, *logits):
        with_gradient = grad_enabled and any(ctx.needs_input_grad)
        dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
        scale = grad_scale.to(dtype) / divisor
        memory = [dense(x) for x in logits]
        gradients = [torch.empty_like(x) if with_gradient else None for x in memory]
        total = sum(_run_kernel(loss, x, y, scale, g) for x, y, g in zip(memory, labels, gradients))
        if with_gradient:
            ctx.save_for_backward(*logits)
            ctx.loss, ctx.labels, ctx.divisor, ctx.grad_scale = loss, labels, divisor, grad_scale
            ctx.gradients, ctx.scale = gradients, scale
        return total / divisor

    @staticmethod
    def backward(ctx, incoming):
        logits, inputs_before = ctx.saved_tensors, (None,) * 5
        if torch.is_grad_enabled():
            return *inputs_before, *_differentiable_gradients(ctx, logits, incoming)
        # Returned tensors belong to autograd: a second backward pass must not write into them.
        gradients, ctx.gradients = ctx.gradients, None
        scale = incoming.to(ctx.scale.dtype) / ctx.divisor
        memory = [dense(x) for x in logits]
        written_scale = ctx.scale if gradients else None
        gradients = gradients or [torch.empty_like(x) for x in memory]
        for x, y, g in zip(memory, ctx.labels, gradients):
            _run_kernel(ctx.loss, x, y, scale, g, written_scale)
        ctx.grad_scale.copy_(incoming)
        return *inputs_before, *gradients


def _run_kernel(loss, logits, labels, scale, gradient, written_scale=None):
    """Run the kernel on a level; see :func:`.cpu.loss_and_gradient`."""
    planes = as_planes(logits, logits), labels_as_planes(labels, logits).to(torch.int32)
    gradient = None if gradient is None else as_planes(gradient, logits)
    return loss.kernel.loss_and_gradient(*planes, loss.family, loss.weights, scale, gradient, written_scale)


def _differentiable_gradients(ctx: Any, logits: Sequence[Tensor], incoming: Tensor) -> list[Tensor | None]:
    wanted = [x for x in logits if x.requires_grad]
    total = ctx.loss.plain(logits) / ctx.divisor
    gradients = iter(torch.autograd.grad(total, wanted, incoming, create_graph=True))
    return [next(gradients) if x.requires_grad else None for x in logits]
