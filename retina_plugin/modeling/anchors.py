"""Anchor generators of torchvision and Detectron (1), for weights that were trained with them.

Both round to whole pixels, which changes the sides of Detectron2's anchors by up to 6 %. With torchvision's strides,
anchors of P7 move by up to 84 pixels in an image of 800 x 1344. ``MODEL.ANCHOR_GENERATOR.NAME`` names the generator;
order (row, column, size, ratio) and keys are those of Detectron2's ``DefaultAnchorGenerator``.

L levels, A anchors a cell.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import BufferList, DefaultAnchorGenerator
from torch import Tensor

_PerLevel = Sequence[Sequence[float]]


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """Generates torchvision's anchors: corners in whole pixels, strides from the padded image.

    The stride of a level is the integer quotient of padded side and number of cells, for rows and columns each. It is
    smaller than the nominal stride if that does not divide the side; the first nominal stride must divide both sides.
    """

    def generate_cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
        """Generate the anchors (A, 4) of a cell around (0, 0), XYXY in pixels, size-major; torchvision's arithmetic."""
        height = torch.sqrt(torch.tensor(aspect_ratios))
        sides = torch.stack([1 / height, height], dim=1)[None] * torch.tensor(sizes)[:, None, None]
        corner = (sides.flatten(0, 1) / 2).round()  # from (sizes, ratios, XY)
        return torch.cat([-corner, corner], dim=1)

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        """Generate L tensors (Hl * Wl * A, 4) for L pairs (Hl, Wl). Can be traced and scripted."""
        height, width = grid_sizes[0][0] * self.strides[0], grid_sizes[0][1] * self.strides[0]
        buffers: list[Tensor] = [named[1] for named in self.cell_anchors.named_buffers()]  # TorchScript has no others
        anchors = []
        for size, cell_anchors in zip(grid_sizes, buffers):
            rows = torch.arange(size[0], device=cell_anchors.device) * (height // size[0])
            columns = torch.arange(size[1], device=cell_anchors.device) * (width // size[1])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=2).view(-1, 1, 4)
            anchors.append((shifts + cell_anchors).view(-1, 4))
        return anchors


@ANCHOR_GENERATOR_REGISTRY.register()
class DetectronAnchorGenerator(DefaultAnchorGenerator):
    """Generates Detectron's anchors: multiples of boxes with the area of a cell and sides in whole pixels.

    A box of Detectron (1) ends at the index of its last pixel, a box of Detectron2 where that pixel ends, one further.
    Anchors that Detectron centers at (stride - 1) / 2 are therefore centered at half a stride here:
    ``MODEL.ANCHOR_GENERATOR.OFFSET`` must be 0.5.
    """

    def _calculate_anchors(self, sizes: _PerLevel, aspect_ratios: _PerLevel) -> BufferList:
        return BufferList([_multiples_of_rounded_boxes(*level) for level in zip(sizes, aspect_ratios, self.strides)])


def _multiples_of_rounded_boxes(sizes: Sequence[float], aspect_ratios: Sequence[float], stride: int) -> Tensor:
    anchors = []
    for size in sizes:
        scale = size / stride
        for ratio in aspect_ratios:
            # Python rounds halves to even, like numpy in Detectron.
            width = round((stride * stride / ratio) ** 0.5)
            height = round(width * ratio)
            anchors.append([-scale * width / 2, -scale * height / 2, scale * width / 2, scale * height / 2])
    return torch.tensor(anchors)
