"""Folds the frozen batch norms of a timm model into the convolutions before them.

In timm's models a convolution and its norm are siblings, and the norm may hold the activation. Which norm follows which
convolution is seen in one forward pass.
"""

from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.norm_act import FrozenBatchNorm2d, FrozenBatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn

from retina_plugin.core.errors import ConfigError
from retina_plugin.modeling.backbones.frozen_bn import scale_and_shift, scaled_conv2d


class FoldedConv2d(nn.Conv2d):
    """Computes a convolution and its frozen norm, without the norm's activation, equal up to rounding."""

    norm_of: tuple[Any]  # in a tuple, which keeps the norm from being a child under a second name

    def forward(self, x: Tensor) -> Tensor:
        (norm,) = self.norm_of
        scale, shift = scale_and_shift(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
        geometry: Any = (self.stride, self.padding, self.dilation, self.groups)
        return scaled_conv2d(x, self.weight, self.bias, scale, shift, geometry)


class FoldedConv2dSame(FoldedConv2d):
    """Computes the same after TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)))


class FoldedNorm(FrozenBatchNorm2d):
    """Passes on what a folded convolution has normalized."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FoldedNormAct(FrozenBatchNormAct2d):
    """Applies the activation to what a folded convolution has normalized."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


# Exact types: a subclass may compute something else.
_CONVS = {nn.Conv2d: FoldedConv2d, Conv2dSame: FoldedConv2dSame}
_NORMS = {FrozenBatchNorm2d: FoldedNorm, FrozenBatchNormAct2d: FoldedNormAct}


def fold_timm_frozen_bn(body: nn.Module, channels: int) -> int:
    """Fold each frozen norm whose input is the output of a convolution into this convolution (in place).

    Modules, parameters and buffers stay the same objects with the same names.

    Args:
        body: a timm model.
        channels: of its images.

    Returns:
        The number of folded convolutions.

    Raises:
        ConfigError: the folded model computes something else, as where the output of such a convolution has a second
            use; the model is as it was.
    """
    images = torch.rand(1, channels, 64, 64)
    pairs = _find_pairs(body, images)
    state = {key: value.clone() for key, value in body.state_dict().items()}
    types = [type(module) for pair in pairs for module in pair]
    for _, norm in pairs:  # a new norm changes next to nothing, and folding it wrongly would not show
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
    expected = _run(body, images)
    for conv, norm in pairs:
        conv.norm_of = (norm,)
        conv.__class__, norm.__class__ = _CONVS[type(conv)], _NORMS[type(norm)]
    folded = _run(body, images)
    body.load_state_dict(state)
    if images.is_meta:  # there are no numbers to compare
        return len(pairs)
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())) for a, b in zip(folded, expected)):
        for module, kind in zip([module for pair in pairs for module in pair], types):
            module.__class__ = kind
        raise ConfigError([
            f"MODEL.BACKBONE.FOLD_FROZEN_BN is True, but {type(body).__name__} of timm uses what is before a norm a "
            "second time, so that the norm cannot be folded. Set it to False"
        ])  # fmt: skip
    return len(pairs)


@torch.no_grad()
def _run(body: nn.Module, images: Tensor) -> list[Tensor]:
    was_training = body.training
    try:
        return [feature.float() for feature in body.eval()(images)]
    finally:
        body.train(was_training)


def _find_pairs(body: nn.Module, images: Tensor) -> list[tuple[Any, Any]]:
    """Find each convolution and the frozen norm that its output goes to."""
    made: list[tuple[nn.Module, Tensor]] = []
    pairs: list[tuple[Any, Any]] = []

    def note_output(conv: nn.Module, _: Any, output: Tensor) -> None:
        made.append((conv, output))  # kept: the memory of a tensor that is gone could be another's

    def note_input(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        pairs.extend((conv, norm) for conv, output in made if output is inputs[0])

    hooks = [m.register_forward_hook(note_output) for m in body.modules() if type(m) in _CONVS]
    hooks += [m.register_forward_pre_hook(note_input) for m in body.modules() if type(m) in _NORMS]
    try:
        _run(body, images)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs
