"""The anchors of two other RetinaNets, for weights that were trained with them.

Both round to whole pixels, which changes the sides of Detectron2's anchors by up to 6 %. With torchvision's strides,
anchors of P7 move by up to 84 pixels in an image of 800 x 1344. ``MODEL.ANCHOR_GENERATOR.NAME`` chooses one; the order
(row, column, size, ratio) and all keys are those of Detectron2's ``DefaultAnchorGenerator``.

L levels, A anchors a cell.
"""

import torch
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import BufferList, DefaultAnchorGenerator


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """Corners rounded to whole pixels, and the stride of a level is what divides the padded image into its cells.

    The stride is the integer quotient of padded side and number of cells, for rows and columns each: where the image
    is no multiple of a level's nominal stride, it is smaller. The first level's nominal stride must divide the image,
    as the pyramid's padding sees to.
    """

    def generate_cell_anchors(self, sizes, aspect_ratios):
        """The A anchors (A, 4) of a cell, XYXY in pixels around (0, 0), size-major; torchvision's own arithmetic."""
        sizes, aspect_ratios = torch.tensor(sizes), torch.tensor(aspect_ratios)
        height = torch.sqrt(aspect_ratios)
        size = torch.stack([1 / height, height], dim=1)[None] * sizes[:, None, None]  # (sizes, ratios, XY)
        corner = (size.flatten(0, 1) / 2).round()
        return torch.cat([-corner, corner], dim=1)

    def _grid_anchors(self, grid_sizes):
        """list of L tensors (Hl * Wl * A, 4) for L pairs (Hl, Wl)."""
        image = [cells * self.strides[0] for cells in grid_sizes[0]]
        anchors = []
        for cells, cell_anchors in zip(grid_sizes, self.cell_anchors):
            rows, columns = (
                torch.arange(number, device=cell_anchors.device) * (side // number)
                for number, side in zip(cells, image)
            )
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=2).view(-1, 1, 4)
            anchors.append((shifts + cell_anchors).view(-1, 4))
        return anchors


@ANCHOR_GENERATOR_REGISTRY.register()
class DetectronAnchorGenerator(DefaultAnchorGenerator):
    """Multiples of boxes with the area of a cell, whose width and height are rounded to whole pixels.

    Detectron (1) gives a box by its first and its last pixel. Here, as everywhere in Detectron2, it ends where the last
    pixel ends: one further. Its anchors, centered at (stride - 1) / 2 there, are at half a stride then:
    ``MODEL.ANCHOR_GENERATOR.OFFSET`` must be 0.5.
    """

    def _calculate_anchors(self, sizes, aspect_ratios):
        return BufferList([_multiples_of_rounded_boxes(*level) for level in zip(sizes, aspect_ratios, self.strides)])


def _multiples_of_rounded_boxes(sizes, aspect_ratios, stride):
    anchors = []
    for size in sizes:
        scale = size / stride
        for ratio in aspect_ratios:
            # Python rounds halves to even, as numpy does in Detectron.
            width = round((stride * stride / ratio) ** 0.5)
            height = round(width * ratio)
            anchors.append([-scale * width / 2, -scale * height / 2, scale * width / 2, scale * height / 2])
    return torch.tensor(anchors)
