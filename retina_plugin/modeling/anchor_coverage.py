"""Measures how well the anchors of a RetinaNet cover boxes (Lin et al. 2017, section 4, "Anchors").

L levels, A anchors a cell, G boxes; T anchor types in all, as in :mod:`.assigners.anchor_grid`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_anchor_generator, build_backbone
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from retina_plugin.losses.targets import Targets
from retina_plugin.modeling.anchor_layout import anchors_of_size, level_shapes, padded_size
from retina_plugin.modeling.assigners import build_assigner
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid
from retina_plugin.modeling.ground_truth import check_ground_truth

# Share of boxes without an anchor of the positive IoU above which coverage is called poor (docs/anchors.md).
MAX_MISSED = 0.2

_Best = tuple[Tensor, Tensor]  # IoU float32 (G,) and level int64 (G,)


class AnchorCoverage:
    """Compares boxes with the anchors that a configuration's model has, on the CPU.

    Anchors, their levels and the padding of images are those of the model's own parts. Images are padded alone; in a
    batch, padding may add anchors beyond the border of smaller images.

    Attributes:
        levels: names of the L features.
        strides: of the L features, in pixels.
        num_classes: K.
        threshold: the lowest IoU from which on an anchor is positive (``MODEL.RETINANET.IOU_THRESHOLDS``); 1 if none.
        num_cell_anchors: A of each level.
    """

    BOXES_AT_ONCE = 2**14

    def __init__(self, cfg: CfgNode, backbone: Backbone | None = None):
        """
        Args:
            cfg: of a RetinaNet.
            backbone: of its model; None to build it without weights.

        Raises:
            ConfigError: the backbone lacks a level that the keys name.
        """
        if backbone is None:
            with torch.device("meta"):  # no memory, no time
                backbone = build_backbone(cfg)
        self._backbone = backbone
        self.levels = list(cfg.MODEL.RETINANET.IN_FEATURES)
        shapes = level_shapes(backbone, self.levels)
        self.strides: list[int] = [shape.stride for shape in shapes]
        self._generator = build_anchor_generator(cfg, shapes)
        self._assigner = build_assigner(cfg)
        self.num_classes: int = cfg.MODEL.RETINANET.NUM_CLASSES
        bounds = zip(cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.RETINANET.IOU_LABELS[1:])
        self.threshold: float = min((bound for bound, label in bounds if label == 1), default=1.0)
        one_cell = anchors_of_size(self._generator, self.strides, (1, 1))
        self.num_cell_anchors = [len(level) for level in one_cell]
        self._first_anchors = [level.tensor for level in one_cell]

    @property
    def assigns_before_forward(self) -> bool:
        """Whether :meth:`assign` works, which it does unless the assigner looks at predictions."""
        return not getattr(self._assigner, "needs_predictions", False)

    def best(self, boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the best IoU of each box with any anchor.

        Below the positive threshold, it is bitwise that of :func:`detectron2.structures.pairwise_iou`. From the
        threshold on, it may be the IoU of an anchor that is equally good up to rounding.

        Args:
            boxes: float32 (G, 4) at training size, XYXY in pixels.
            sizes: (G, 2), height and width of the image at training size, before padding.

        Returns:
            The IoUs, float32 (G,), and the level in 0..L-1 of the anchor, int64 (G,).
        """
        iou, level = np.zeros(len(boxes), dtype=np.float32), np.zeros(len(boxes), dtype=np.int64)
        groups, group = np.unique(self._padded(sizes), axis=0, return_inverse=True)
        for number, (height, width) in enumerate(groups.tolist()):
            rows = np.flatnonzero(group.ravel() == number)
            search = self._search((height, width))
            for start in range(0, len(rows), self.BOXES_AT_ONCE):
                some = rows[start : start + self.BOXES_AT_ONCE]
                found = search(Boxes(torch.from_numpy(boxes[some])))
                iou[some], level[some] = (values.numpy() for values in found)
        return iou, level

    def assign(self, instances: Instances) -> tuple[list[Boxes], Targets]:
        """Assign the anchors of an image by the model's assigner.

        Args:
            instances: an image with ``gt_boxes`` and ``gt_classes``, as Detectron2's mapper makes them.

        Returns:
            The anchors of each level, and the targets of one image.

        Raises:
            ValueError: a class outside 0..K-1.
        """
        check_ground_truth([{"instances": instances}], self.num_classes)
        anchors = self._anchors(padded_size(self._backbone, [instances.image_size]))
        return anchors, self._assigner(anchors, [instances], None, num_cell_anchors=self._cell_anchors_of_model())

    def anchor_sides(self) -> np.ndarray:
        """Width and height of the anchor types of all levels, float64 (number of types, 2)."""
        sides = torch.cat([anchors[:, 2:] - anchors[:, :2] for anchors in self._first_anchors]).double()
        return np.unique(sides.numpy().round(3), axis=0)

    def nearest_offsets(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return how far the center of each box is from the nearest center of anchors of each level.

        By the strides of the levels; those of ``TorchvisionAnchorGenerator`` may be smaller.

        Args:
            boxes, sizes: see :meth:`best`.

        Returns:
            float32 (L, G, 2), in x and y, at least 0.
        """
        center = (boxes[:, :2] + boxes[:, 2:]).astype(np.float64) / 2
        padded = self._padded(sizes)[:, ::-1]
        offsets = []
        for stride, anchors in zip(self.strides, self._first_anchors):
            first = ((anchors[0, :2] + anchors[0, 2:]) / 2).double().numpy()
            cell = np.clip(((center - first) / stride).round(), 0, np.ceil(padded / stride) - 1)
            offsets.append(np.abs(center - first - cell * stride))
        return np.stack(offsets).astype(np.float32)

    def _padded(self, sizes: np.ndarray) -> np.ndarray:
        """Height and width (G, 2) after padding."""
        each, which = np.unique(np.asarray(sizes).astype(int).clip(min=1), axis=0, return_inverse=True)
        padded = np.array([padded_size(self._backbone, [tuple(size)]) for size in each.tolist()], dtype=int)
        return padded.reshape(-1, 2)[which.ravel()]

    def _anchors(self, size: tuple[int, int]) -> list[Boxes]:
        return anchors_of_size(self._generator, self.strides, size)

    def _cell_anchors_of_model(self) -> Sequence[int] | None:
        return getattr(self._generator, "num_cell_anchors", None)

    def _search(self, size: tuple[int, int]) -> Callable[[Boxes], _Best]:
        """A function that returns the best IoU and its level of each of its boxes, for a padded image of this size."""
        anchors = self._anchors(size)
        grid = AnchorGrid.find(anchors, self._cell_anchors_of_model())
        if grid is None:
            return lambda boxes: _search_all(anchors, boxes)
        level_of_type = torch.arange(len(anchors)).repeat_interleave(torch.tensor(self.num_cell_anchors))

        def search(boxes: Boxes) -> _Best:
            iou, anchor_type = grid.nearest_iou(boxes).max(dim=0)
            below = (iou < self.threshold).nonzero().squeeze(1)
            best = torch.zeros(len(below))
            for pair_iou, box, _ in grid.overlapping_pairs(boxes[below], self.threshold, with_best=True):
                best.scatter_reduce_(0, box, pair_iou, "amax")
            iou[below] = best
            return iou, level_of_type[anchor_type]

        return search


def _search_all(anchors: Sequence[Boxes], boxes: Boxes) -> _Best:
    every, ends = Boxes.cat(list(anchors)), torch.tensor([len(level) for level in anchors]).cumsum(0)
    found = [pairwise_iou(Boxes(some), every).max(dim=1) for some in boxes.tensor.split(64)]
    iou, index = (torch.cat(values) for values in zip(*found))
    return iou, torch.searchsorted(ends, index, right=True)
