"""A convolution and the frozen batch norm behind it as one convolution.

Detectron2 convolves, and then multiplies and shifts every activation: in training these are two passes over the output
and one over its gradient. Frozen, the norm is an affine function a channel, which the convolution can do itself:
scale * conv(x, weight) + shift = conv(x, scale * weight) + shift.
"""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch.nn import functional as F


def fold_frozen_bn(module):
    """Let every ``Conv2d`` of Detectron2 with a ``FrozenBatchNorm2d`` apply the norm to its weight (in place).

    Modules, parameters and buffers stay the same objects with the same names. A norm that is a module of its own, as in
    a head's tower, stays as it is.

    Returns:
        The number of convolutions that are folded.
    """
    # Their subclasses may compute something else.
    convs = [m for m in module.modules() if type(m) is Conv2d and type(m.norm) is FrozenBatchNorm2d]
    for conv in convs:
        # A new module in its place would miss the lists of convolutions that FPN keeps besides its children.
        conv.__class__ = FrozenBNConv2d
    return len(convs)


class FrozenBNConv2d(Conv2d):
    """Detectron2's ``Conv2d`` whose norm is a ``FrozenBatchNorm2d``: the same up to rounding.

    The weight is scaled in every forward, which costs next to nothing beside the convolution. A scaled copy to keep
    would be wrong as soon as weights are loaded, trained or moved.
    """

    def forward(self, x):
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + scale * self.bias
        scale = scale.view(-1, 1, 1, 1)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        if torch.is_grad_enabled():
            x = _ScaledConvolution.apply(x, self.weight, scale, shift, geometry)
        else:  # what exporters understand
            x = F.conv2d(x, self.weight * scale, shift, *geometry)
        return x if self.activation is None else self.activation(x)


class _ScaledConvolution(torch.autograd.Function):
    """conv(x, scale * weight) + shift, which scales the weight again in backward.

    Autograd would keep the scaled weights of all layers until then: 90 MB for ResNet-50.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, geometry):
        output = F.conv2d(x, weight * scale, shift, *geometry)
        ctx.geometry = geometry
        # Under autocast, the convolution's own precision.
        ctx.save_for_backward(x.to(output.dtype), weight, scale)
        return output

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        needs_x, needs_weight, _, needs_shift, _ = ctx.needs_input_grad
        grad_x, grad_weight, grad_shift = torch.ops.aten.convolution_backward(
            grad,
            x,
            (weight * scale).to(x.dtype),
            [len(weight)],
            stride,
            padding,
            dilation,
            False,  # not transposed
            (0, 0),
            groups,
            (needs_x, needs_weight, needs_shift),
        )
        if needs_weight:
            grad_weight = grad_weight * scale
        return grad_x, grad_weight, None, grad_shift, None
