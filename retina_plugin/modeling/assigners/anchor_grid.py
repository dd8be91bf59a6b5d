"""Finds the anchors with a high IoU to a box by their rows and columns, without computing the IoU of all pairs.

L levels, A anchors a cell, R anchors in all, G boxes of an image. An *anchor type* is one of the A anchors of a cell of
one level; T anchor types in all (45 in the paper). Anchors of one type share their rows and columns.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

Pairs = tuple[Tensor, Tensor, Tensor]  # (iou, box, anchor) of P pairs: float32, int64 and int64 (P,)


def overlap(box_start: Tensor, box_end: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Compute the length that two intervals share, at least 0; broadcasts."""
    return (torch.minimum(box_end, end) - torch.maximum(box_start, start)).clamp_(min=0)


def iou_of_overlaps(width: Tensor, height: Tensor, box_area: Tensor, anchor_area: Tensor) -> Tensor:
    """Compute the IoU of a box and an anchor that share ``width`` x ``height``; broadcasts.

    Operation by operation as ``detectron2.structures.pairwise_iou``: in float32, the same bits.
    """
    intersection = width * height
    return torch.where(intersection > 0, intersection / (box_area + anchor_area - intersection), 0)


class AnchorGrid:
    """Holds R anchors on grids: an anchor is (x0[column], y0[row], x1[column], y1[row]) of its anchor type.

    An IoU of at least t needs an intersection of at least t / (1 + t) times the sum of both areas. This leaves a window
    of rows and columns for each box and anchor type, mostly an empty one. Only pairs in these windows are computed.
    """

    # Maximum number of pairs in memory at once, about 100 bytes each, besides those of one more box.
    PAIRS_AT_ONCE = 2**17
    BOXES_AT_ONCE = 2**10

    @classmethod
    def find(cls, anchors: Sequence[Boxes], num_cell_anchors: Sequence[int] | None) -> "AnchorGrid | None":
        """Recognize the grids that the anchors of L levels are on.

        Args:
            anchors: the anchors of each level.
            num_cell_anchors: A of each level, or None if unknown.

        Returns:
            None if the anchors are not exactly a grid in the order (row, column, A), or not on the CPU: each window of
            :meth:`overlapping_pairs` would synchronize with a GPU.
        """
        on_cpu = all(level.device.type == "cpu" for level in anchors)
        if not on_cpu or num_cell_anchors is None or len(num_cell_anchors) != len(anchors):
            return None
        edges = [_find_edges(level.tensor, num) for level, num in zip(anchors, num_cell_anchors)]
        grids = [e for e in edges if e is not None]
        if len(grids) < len(edges):
            return None
        grid = cls(grids)
        return grid if grid.x.is_in_order() and grid.y.is_in_order() else None

    def __init__(self, edges: Sequence[tuple[Tensor, Tensor]]) -> None:
        """
        Args:
            edges: L pairs of finite float32 tensors: (2, A, columns), start and end in x of the anchors of each column,
                and (2, A, rows), the same in y. Starts and ends never decrease along the grid, and every end is greater
                than its start.
        """
        self.x = _Axis([x for x, _ in edges])
        self.y = _Axis([y for _, y in edges])
        num_cell_anchors = torch.tensor([x.shape[1] for x, _ in edges])
        sizes = torch.tensor([x.shape[1:].numel() * y.shape[2] for x, y in edges])
        # The index of an anchor is first + row * row_step + column * column_step of its anchor type.
        self.column_step = num_cell_anchors.repeat_interleave(num_cell_anchors)  # (T,)
        self.row_step = self.x.size * self.column_step
        _, self.first = _ragged_range(sizes.cumsum(0) - sizes, num_cell_anchors)

    def overlapping_pairs(self, boxes: Boxes, min_iou: float, with_best: bool) -> Iterator[Pairs]:
        """Find every pair of a box and an anchor with IoU >= min_iou.

        Args:
            boxes: G boxes; they may lie outside the image, have no area or not be finite.
            min_iou: lower bound of the IoU.
            with_best: also find every pair with the highest IoU of its box, if that is above 0.

        Yields:
            Pairs, some with a lower IoU, even 0. All pairs of a box are yielded at once.
        """
        # Boxes without area or with infinite area have an IoU of 0 with all anchors.
        with_area = (boxes.nonempty() & boxes.area().isfinite()).nonzero().squeeze(1)
        for block in with_area.split(self.BOXES_AT_ONCE):
            boxes_of_block = boxes[block]
            for windows in self._windows(boxes_of_block, min_iou, with_best):
                iou, box, anchor = self._pairs(boxes_of_block, windows)
                yield iou, block.index_select(0, box), anchor

    def nearest_iou(self, boxes: Boxes) -> Tensor:
        """Compute the IoU (T, G) of each box with the nearest anchor of each anchor type.

        The highest of a box is a lower bound of its highest IoU with all anchors, and mostly equal; rounded edges make
        a difference.
        """
        x0, y0, x1, y1 = boxes.tensor.T.contiguous()
        width, anchor_width = self.x.nearest(x0, x1)  # (T, G)
        height, anchor_height = self.y.nearest(y0, y1)
        return iou_of_overlaps(width, height, boxes.area(), anchor_width * anchor_height)

    def _windows(self, boxes: Boxes, min_iou: float, with_best: bool) -> Sequence[Tensor]:
        """Chunks (6, windows): box, anchor type, first column, number of columns, first row, number of rows."""
        x0, y0, x1, y1 = boxes.tensor.T.contiguous()
        bound = torch.full_like(x0, min_iou)
        if with_best:
            bound = torch.minimum(bound, self.nearest_iou(boxes).amax(dim=0))

        # float32 rounds by a factor of at most 1 +- u, u = 2^-24: three times in an intersection, three in an area, two
        # in the union, once in the quotient. A pair with a float32 IoU of at least t thus has a true intersection of at
        # least (1 - 10 u) t / (1 + t) times the sum of the true areas, and 10 u < 1e-5; underflow adds an error below
        # 1e-40. The float64 arithmetic below rounds much less, except for the sum of an edge and an overlap. That error
        # matters only for overlaps under 1e-8 of the edge, and different float32 edges are further apart.
        x0, y0, x1, y1, bound = (v.double() for v in (x0, y0, x1, y1, bound))
        bound = ((1 - 1e-5) * bound - 1e-40).clamp_(min=0)
        areas = (x1 - x0) * (y1 - y0) + (self.x.shortest * self.y.shortest)[:, None]  # (T, G)
        min_area = bound / (1 + bound) * areas - 1e-40
        max_width = torch.minimum(x1 - x0, self.x.longest[:, None])
        max_height = torch.minimum(y1 - y0, self.y.longest[:, None])
        column, num_columns = self.x.window(x0, x1, min_area / max_height)
        row, num_rows = self.y.window(y0, y1, min_area / max_width)
        num_pairs = num_columns * num_rows * (min_area <= max_width * max_height)

        box, anchor_type = num_pairs.T.nonzero().unbind(1)
        at = anchor_type * len(boxes) + box
        windows = torch.stack([box, anchor_type, *(v.take(at) for v in (column, num_columns, row, num_rows))])
        chunk = num_pairs.sum(dim=0).cumsum(0) // self.PAIRS_AT_ONCE  # (G,)
        return windows.split(chunk[box].unique_consecutive(return_counts=True)[1].tolist(), dim=1)

    def _pairs(self, boxes: Boxes, windows: Tensor) -> Pairs:
        """All pairs of a chunk of windows."""
        box, anchor_type, column, num_columns, row, num_rows = windows
        x0, y0, x1, y1 = boxes.tensor[box].unbind(1)
        of_column, column = _ragged_range(column, num_columns)
        of_row, row = _ragged_range(row, num_rows)
        width, anchor_width = self.x.at(anchor_type[of_column], column, x0[of_column], x1[of_column])
        height, anchor_height = self.y.at(anchor_type[of_row], row, y0[of_row], y1[of_row])
        column = column * self.column_step[anchor_type[of_column]]
        row = self.first[anchor_type[of_row]] + row * self.row_step[anchor_type[of_row]]
        box = box[of_row]
        area = boxes.area()[box]

        # Combine each row of a window with all of its columns.
        r, c = _ragged_range((num_columns.cumsum(0) - num_columns)[of_row], num_columns[of_row])
        width, anchor_width, column = (v.index_select(0, c) for v in (width, anchor_width, column))
        height, anchor_height, row, area, box = (v.index_select(0, r) for v in (height, anchor_height, row, area, box))
        return iou_of_overlaps(width, height, area, anchor_width * anchor_height), box, row + column


class _Axis:
    """Starts and ends of all anchors along x (positions are columns) or along y (positions are rows)."""

    def __init__(self, edges: Sequence[Tensor]) -> None:
        # L tensors (2, A, positions), see AnchorGrid.__init__.
        lengths = [end.double() - start.double() for start, end in edges]
        self.shortest = torch.cat([x.amin(dim=1) for x in lengths])  # (T,)
        self.longest = torch.cat([x.amax(dim=1) for x in lengths])
        self.size = torch.cat([torch.full((e.shape[1],), e.shape[2]) for e in edges])
        most = max(e.shape[2] for e in edges)
        padded = [F.pad(e, (0, most - e.shape[2]), value=math.inf) for e in edges]
        self.start, self.end = torch.cat(padded, dim=1).double()  # (T, most)
        middle = self.start + self.end
        self.between = (middle[:, 1:] + middle[:, :-1]) / 2

    def is_in_order(self) -> bool:
        """Whether all anchors have a length and edges never decrease, which the binary searches need."""
        ordered = [(edge[:, 1:] >= edge[:, :-1]).all() for edge in (self.start, self.end)]
        return bool((self.shortest > 0).all() and all(ordered))

    def at(self, anchor_type: Tensor, position: Tensor, box_start: Tensor, box_end: Tensor) -> tuple[Tensor, Tensor]:
        """Overlap with a box, and length, of the anchors at given positions; float32."""
        i = anchor_type * self.start.shape[1] + position
        start, end = self.start.take(i).float(), self.end.take(i).float()
        return overlap(box_start, box_end, start, end), end - start

    def nearest(self, box_start: Tensor, box_end: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`at` the position (T, G) where the anchor's center is nearest to that of the box."""
        middle = (box_start.double() + box_end.double()).repeat(len(self.size), 1)
        position = torch.searchsorted(self.between, middle)  # never in the padding, where ``between`` is infinite
        return self.at(torch.arange(len(self.size))[:, None], position, box_start, box_end)

    def window(self, box_start: Tensor, box_end: Tensor, min_overlap: Tensor) -> tuple[Tensor, Tensor]:
        """First position and number of positions that share at least ``min_overlap`` (T, G) with a box."""
        first = torch.searchsorted(self.end, box_start + min_overlap)
        stop = torch.searchsorted(self.start, box_end - min_overlap, right=True)
        return first, (stop - first).clamp_(min=0)


def _find_edges(anchors: Tensor, num_cell_anchors: int) -> tuple[Tensor, Tensor] | None:
    """Edges of a level for :class:`AnchorGrid`, in any order; None if the level has no rows and columns."""
    if len(anchors) == 0 or len(anchors) % num_cell_anchors:
        return None
    cells = anchors.reshape(-1, num_cell_anchors, 4)
    columns = int((cells[:, 0, 1] == cells[0, 0, 1]).sum())
    if columns == 0 or len(cells) % columns:
        return None
    cells = cells.view(-1, columns, num_cell_anchors, 4)
    first_row, first_column = cells[0], cells[:, 0]
    is_x = torch.tensor([1.0, 0.0, 1.0, 0.0])
    # The sum is exact because one of its terms is 0; it is NaN where an edge is not finite.
    if not torch.equal((first_row * is_x) + (first_column * (1 - is_x))[:, None], cells):
        return None
    return first_row.permute(2, 1, 0)[0::2], first_column.permute(2, 1, 0)[1::2]


def _ragged_range(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenates the ranges first..first + count - 1; returns the range of each number, and the numbers."""
    source = torch.repeat_interleave(count)
    return source, torch.arange(len(source)) + (first - count.cumsum(0) + count).index_select(0, source)
