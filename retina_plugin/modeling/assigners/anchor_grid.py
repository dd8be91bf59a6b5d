"""Anchors as rows and columns: those that can overlap a box much are found without a look at the others.

L levels, A anchors a cell, R anchors in all, G boxes of an image. A *shape* is one of the A anchors of a cell of one
level; S shapes in all (45 in the paper). The anchors of a shape share their rows and their columns.
"""

import math

import torch
from torch.nn import functional as F


def overlap(box_start, box_end, start, end):
    """The length that two intervals share, at least 0; broadcasts."""
    return (torch.minimum(box_end, end) - torch.maximum(box_start, start)).clamp_(min=0)


def iou_of_overlaps(width, height, box_area, anchor_area):
    """IoU of a box and an anchor that share ``width`` x ``height``; broadcasts.

    In float32 it is that of ``detectron2.structures.pairwise_iou`` to the last bit: the same operations in one order.
    """
    intersection = width * height
    return torch.where(intersection > 0, intersection / (box_area + anchor_area - intersection), 0)


class AnchorGrid:
    """R anchors known to lie on grids: an anchor is (x0[column], y0[row], x1[column], y1[row]) of its shape.

    An IoU of t or more needs an intersection of t / (1 + t) times the sum of both areas or more. That leaves a window
    of rows and columns for each box and shape, mostly an empty one. Only the pairs in these windows are looked at.
    """

    # In memory at once are so many pairs, about 100 bytes each, and those of one more box.
    PAIRS_AT_ONCE = 2**17
    BOXES_AT_ONCE = 2**10

    @classmethod
    def find(cls, anchors, num_cell_anchors):
        """
        Args:
            anchors: list of L ``Boxes``, the anchors of each level.
            num_cell_anchors: list of L integers A, or None if the anchor generator does not tell.

        Returns:
            the ``AnchorGrid`` of these anchors, or None: where they are no grid in the order (row, column, A), which is
            compared exactly, and where they are not on the CPU, as a GPU would have to report each window to the host.
        """
        if any(level.device.type != "cpu" for level in anchors):
            return None
        if num_cell_anchors is None or len(num_cell_anchors) != len(anchors):
            return None
        edges = [_find_edges(level.tensor, num) for level, num in zip(anchors, num_cell_anchors)]
        if any(e is None for e in edges):
            return None
        grid = cls(edges)
        return grid if grid.x.is_in_order() and grid.y.is_in_order() else None

    def __init__(self, edges):
        """
        Args:
            edges: list of L pairs of float32 tensors: (2, A, columns), where the anchors of each column start and
                end in x, and (2, A, rows), the same in y. Finite, neither of them ever decreases along the grid, and
                every end is beyond its start.
        """
        self.x = _Axis([x for x, _ in edges])
        self.y = _Axis([y for _, y in edges])
        num_cell_anchors = torch.tensor([x.shape[1] for x, _ in edges])
        sizes = torch.tensor([x.shape[1:].numel() * y.shape[2] for x, y in edges])
        # An anchor's number is first + row * row_step + column * column_step, of its shape.
        self.column_step = num_cell_anchors.repeat_interleave(num_cell_anchors)  # (S,)
        self.row_step = self.x.size * self.column_step
        _, self.first = _ragged_range(sizes.cumsum(0) - sizes, num_cell_anchors)

    def overlapping_pairs(self, boxes, min_iou, with_best):
        """Look up every pair of a box and an anchor with IoU >= min_iou.

        Args:
            boxes: ``Boxes`` of G boxes; they may lie outside, have no area or not be finite.
            min_iou: float.
            with_best: look up as well every pair with the highest IoU of its box, where that is above 0.

        Yields:
            (iou, box, anchor): float32, int64 and int64 tensors (P,), the pairs. Some have less IoU, even 0. All
            pairs of a box come together.
        """
        # Every other box has an IoU of 0 with all anchors.
        with_area = (boxes.nonempty() & boxes.area().isfinite()).nonzero().squeeze(1)
        for block in with_area.split(self.BOXES_AT_ONCE):
            boxes_of_block = boxes[block]
            for windows in self._windows(boxes_of_block, min_iou, with_best):
                iou, box, anchor = self._pairs(boxes_of_block, *windows)
                yield iou, block.index_select(0, box), anchor

    def nearest_iou(self, boxes):
        """IoU (G,) of each box with the best of the nearest anchors of each shape.

        The best IoU of all anchors is no lower, and mostly no higher: it may be, where rounding moves an edge.
        """
        x0, y0, x1, y1 = boxes.tensor.T.contiguous()
        width, anchor_width = self.x.nearest(x0, x1)  # (S, G)
        height, anchor_height = self.y.nearest(y0, y1)
        return iou_of_overlaps(width, height, boxes.area(), anchor_width * anchor_height).amax(dim=0)

    def _windows(self, boxes, min_iou, with_best):
        """Chunks (6, number of windows): box, shape, first column, number of columns, first row, number of rows."""
        x0, y0, x1, y1 = boxes.tensor.T.contiguous()
        min_iou = torch.full_like(x0, min_iou)
        if with_best:
            min_iou = torch.minimum(min_iou, self.nearest_iou(boxes))

        # float32 rounds by a factor of 1 +- u at most, u = 2^-24: three times in an intersection, three in an area, two
        # in the union, once in the quotient. So a pair whose IoU it calls t or more has a true intersection of at least
        # (1 - 10 u) t / (1 + t) times the sum of the true areas, and 10 u < 1e-5; where it underflows, it is off by
        # less than 1e-40. Below, float64 rounds much less, except where a window adds an overlap to an edge: that
        # matters to overlaps under 1e-8 of the edge alone, and float32 edges that differ at all are further apart.
        x0, y0, x1, y1, min_iou = (v.double() for v in (x0, y0, x1, y1, min_iou))
        min_iou = ((1 - 1e-5) * min_iou - 1e-40).clamp_(min=0)
        areas = (x1 - x0) * (y1 - y0) + (self.x.shortest * self.y.shortest)[:, None]  # (S, G)
        min_area = min_iou / (1 + min_iou) * areas - 1e-40
        max_width = torch.minimum(x1 - x0, self.x.longest[:, None])
        max_height = torch.minimum(y1 - y0, self.y.longest[:, None])
        column, num_columns = self.x.window(x0, x1, min_area / max_height)
        row, num_rows = self.y.window(y0, y1, min_area / max_width)
        num_pairs = num_columns * num_rows * (min_area <= max_width * max_height)

        box, shape = num_pairs.T.nonzero().unbind(1)
        at = shape * len(boxes) + box
        windows = torch.stack([box, shape, *(v.take(at) for v in (column, num_columns, row, num_rows))])
        chunk = num_pairs.sum(dim=0).cumsum(0) // self.PAIRS_AT_ONCE  # (G,)
        return windows.split(chunk[box].unique_consecutive(return_counts=True)[1].tolist(), dim=1)

    def _pairs(self, boxes, box, shape, column, num_columns, row, num_rows):
        """The pairs of a chunk of windows, as :meth:`overlapping_pairs` yields them."""
        x0, y0, x1, y1 = boxes.tensor[box].unbind(1)
        of_column, column = _ragged_range(column, num_columns)  # the columns of all windows, one after another
        of_row, row = _ragged_range(row, num_rows)
        width, anchor_width = self.x.at(shape[of_column], column, x0[of_column], x1[of_column])
        height, anchor_height = self.y.at(shape[of_row], row, y0[of_row], y1[of_row])
        column = column * self.column_step[shape[of_column]]
        row = self.first[shape[of_row]] + row * self.row_step[shape[of_row]]
        box = box[of_row]
        area = boxes.area()[box]

        # Each row of a window meets all of its columns.
        r, c = _ragged_range((num_columns.cumsum(0) - num_columns)[of_row], num_columns[of_row])
        width, anchor_width, column = (v.index_select(0, c) for v in (width, anchor_width, column))
        height, anchor_height, row, area, box = (v.index_select(0, r) for v in (height, anchor_height, row, area, box))
        return iou_of_overlaps(width, height, area, anchor_width * anchor_height), box, row + column


class _Axis:
    """Where all anchors start and end along x (a position is a column) or along y (a position is a row)."""

    def __init__(self, edges):
        """
        Args:
            edges: list of L tensors (2, A, positions), see :class:`AnchorGrid`.
        """
        lengths = [end.double() - start.double() for start, end in edges]
        self.shortest = torch.cat([x.amin(dim=1) for x in lengths])  # (S,)
        self.longest = torch.cat([x.amax(dim=1) for x in lengths])
        self.size = torch.cat([torch.full((e.shape[1],), e.shape[2]) for e in edges])
        most = max(e.shape[2] for e in edges)
        padded = [F.pad(e, (0, most - e.shape[2]), value=math.inf) for e in edges]
        self.start, self.end = torch.cat(padded, dim=1).double()  # (S, most)
        middle = self.start + self.end
        self.between = (middle[:, 1:] + middle[:, :-1]) / 2

    def is_in_order(self):
        """Whether all anchors have a length, and edges never decrease, which a search in them needs."""
        ordered = [(edge[:, 1:] >= edge[:, :-1]).all() for edge in (self.start, self.end)]
        return bool((self.shortest > 0).all() and all(ordered))

    def at(self, shape, position, box_start, box_end):
        """Overlap with a box, and own length, of anchors at a position; float32."""
        i = shape * self.start.shape[1] + position
        start, end = self.start.take(i).float(), self.end.take(i).float()
        return overlap(box_start, box_end, start, end), end - start

    def nearest(self, box_start, box_end):
        """:meth:`at` the position (S, G) where the anchor's center is nearest to that of the box."""
        middle = (box_start.double() + box_end.double()).repeat(len(self.size), 1)
        position = torch.searchsorted(self.between, middle)  # never in the padding: there, ``between`` is infinite
        return self.at(torch.arange(len(self.size))[:, None], position, box_start, box_end)

    def window(self, box_start, box_end, min_overlap):
        """The positions that share ``min_overlap`` (S, G) or more with a box: the first, and how many."""
        first = torch.searchsorted(self.end, box_start + min_overlap)
        stop = torch.searchsorted(self.start, box_end - min_overlap, right=True)
        return first, (stop - first).clamp_(min=0)


def _find_edges(anchors, num_cell_anchors):
    """One level's entry of ``edges`` of :class:`AnchorGrid`, in order or not; None if it has no rows and columns."""
    if len(anchors) == 0 or len(anchors) % num_cell_anchors:
        return None
    cells = anchors.reshape(-1, num_cell_anchors, 4)
    columns = int((cells[:, 0, 1] == cells[0, 0, 1]).sum())
    if columns == 0 or len(cells) % columns:
        return None
    cells = cells.view(-1, columns, num_cell_anchors, 4)
    first_row, first_column = cells[0], cells[:, 0]
    is_x = torch.tensor([1.0, 0.0, 1.0, 0.0])
    # Exact, as one of the terms is 0, or not a number where an edge is not finite.
    if not torch.equal((first_row * is_x) + (first_column * (1 - is_x))[:, None], cells):
        return None
    return first_row.permute(2, 1, 0)[0::2], first_column.permute(2, 1, 0)[1::2]


def _ragged_range(first, count):
    """The ranges first..first + count - 1, one after another: the range that each number is from, and the numbers."""
    source = torch.repeat_interleave(count)
    return source, torch.arange(len(source)) + (first - count.cumsum(0) + count).index_select(0, source)
