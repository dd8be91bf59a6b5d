"""Folds a frozen batch norm into the convolution before it.

Detectron2 convolves, then scales and shifts every activation: in training, two passes over the output and one over its
gradient. A frozen norm is an affine function of each channel, which the convolution can include:
scale * conv(x, weight) + shift = conv(x, scale * weight) + shift.
"""

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


def fold_frozen_bn(module: nn.Module) -> int:
    """Fold the ``FrozenBatchNorm2d`` of every Detectron2 ``Conv2d`` into the weight of the convolution (in place).

    Modules, parameters and buffers stay the same objects with the same names; a norm outside of a ``Conv2d``, as in
    the towers of a head, is not folded. A module with a method ``fold_frozen_bn`` folds those that it made another way,
    and says how many. Returns the number of folded convolutions.
    """
    # A subclass may compute something else, so types must be exact.
    convs = [m for m in module.modules() if type(m) is Conv2d and type(m.norm) is FrozenBatchNorm2d]
    for conv in convs:
        # A new module would not replace the convolution in the plain lists that FPN keeps besides its children.
        conv.__class__ = FrozenBNConv2d
    others = [getattr(m, "fold_frozen_bn", None) for m in module.modules()]
    return len(convs) + sum(fold() for fold in others if fold is not None)


class FrozenBNConv2d(Conv2d):
    """Computes Detectron2's ``Conv2d`` with a ``FrozenBatchNorm2d`` as one convolution, equal up to rounding.

    The weight is scaled in every forward pass, which costs little compared to the convolution. A stored scaled weight
    would be outdated when weights are loaded, trained or moved.
    """

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        scale, shift = scale_and_shift(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        x = scaled_conv2d(x, self.weight, self.bias, scale, shift, geometry)
        if self.activation is not None:
            x = self.activation(x)
        return x


# TorchScript compiles both functions: they take tensors and numbers, not modules.


def scale_and_shift(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the affine function that a frozen norm is; each tensor is (channels,)."""
    scale = weight * (var + eps).rsqrt()
    return scale, bias - mean * scale


def scaled_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, geometry: Geometry
) -> Tensor:
    """Compute ``scale * conv(x, weight, bias) + shift`` as one convolution, equal up to rounding.

    Args:
        x: (N, C, H, W).
        weight, bias: of the convolution.
        scale, shift: (channels,), of :func:`scale_and_shift`.
        geometry: stride, padding, dilation and groups of the convolution.
    """
    if bias is not None:
        shift = shift + scale * bias
    scale = scale.view(-1, 1, 1, 1)
    # Neither TorchScript nor exporters support autograd functions.
    if torch.jit.is_scripting() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        x = F.conv2d(x, weight * scale, shift, geometry[0], geometry[1], geometry[2], geometry[3])
    else:
        x = _ScaledConvolution.apply(x, weight, scale, shift, geometry)
    return x


class _ScaledConvolution(torch.autograd.Function):
    """Computes conv(x, scale * weight) + shift, and scales the weight again in backward.

    Autograd would store the scaled weights of all layers until backward: 90 MB for ResNet-50.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        output = F.conv2d(x, weight * scale, shift, *geometry)
        ctx.stride, ctx.padding, ctx.dilation, ctx.groups = geometry
        ctx.save_for_backward(x.to(output.dtype), weight, scale)  # autocast changes the dtype of the convolution
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, _, needs_shift, _ = ctx.needs_input_grad
        # Neither transposed nor with an output padding.
        geometry = ([len(weight)], ctx.stride, ctx.padding, ctx.dilation, False, (0, 0), ctx.groups)
        grad_x, grad_weight, grad_shift = torch.ops.aten.convolution_backward(
            grad, x, (weight * scale).to(x.dtype), *geometry, (needs_x, needs_weight, needs_shift)
        )
        if needs_weight:
            grad_weight = grad_weight * scale
        return grad_x, grad_weight, None, grad_shift, None
