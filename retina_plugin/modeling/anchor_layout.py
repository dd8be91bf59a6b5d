"""Finds the anchors that an image of a given size has, without computing features.

L levels, A anchors a cell, K classes, G boxes of an image.
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, ImageList
from torch import nn

from retina_plugin.core.errors import ConfigError


def level_shapes(backbone: Backbone, names: Sequence[str]) -> list[ShapeSpec]:
    """Return the shapes of the L features that a head sees, in the order of their names.

    Raises:
        ConfigError: the backbone lacks a level.
    """
    shapes = backbone.output_shape()
    if absent := [name for name in names if name not in shapes]:
        raise ConfigError([f"MODEL.RETINANET.IN_FEATURES has {absent}, but the backbone makes {list(shapes)}"])
    return [shapes[name] for name in names]


def padded_size(backbone: Backbone, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the height and width that a batch of images is padded to, given their heights and widths in pixels."""
    # Images without channels cost nothing, and are padded by Detectron2's own code.
    blank = [torch.empty(0, *size) for size in sizes]
    constraints = getattr(backbone, "padding_constraints", None)
    more = {"padding_constraints": constraints} if constraints else {}  # of Detectron2's main
    height, width = ImageList.from_tensors(blank, backbone.size_divisibility, **more).tensor.shape[-2:]
    return height, width


def anchors_of_size(
    generator: Callable[[list[torch.Tensor]], list[Boxes]] | nn.Module,
    strides: Sequence[int],
    size: tuple[int, int],
    device: torch.device | str = "cpu",
) -> list[Boxes]:
    """Generate the anchors of an image by the strides of its L features.

    Args:
        generator: a Detectron2 anchor generator for these features.
        size: height and width of the padded image.

    Returns:
        The anchors of each level, Hl * Wl * A in the order (row, column, A), XYXY in pixels.
    """
    height, width = size
    # What an anchor generator reads of features is their shape: one number, expanded, stands in for them.
    number = torch.zeros((), device=device)
    return generator([number.expand(1, 1, -(-height // s), -(-width // s)) for s in strides])
