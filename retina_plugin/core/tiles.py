"""Divides large images into overlapping tiles."""

import math
from typing import NamedTuple, Protocol

import numpy as np

Rectangle = tuple[float, float, float, float]  # XYXY


class Tile(NamedTuple):
    """A rectangle of an image, and the part of the plane whose objects are this tile's to find.

    Attributes:
        x0, y0, x1, y1: pixels of the image; ``x1`` and ``y1`` are outside.
        core: XYXY, the first corner inside. Cores end in the middle of each overlap, and reach from the outer tiles
            without end, so that those of all tiles of an image partition the plane.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    core: Rectangle

    @property
    def rectangle(self) -> tuple[int, int, int, int]:
        return self.x0, self.y0, self.x1, self.y1

    @property
    def exclusive(self) -> Rectangle:
        """The part of the tile that its neighbors do not reach, XYXY; without end where there is no neighbor."""
        left, top, right, bottom = self.core
        return 2 * left - self.x0, 2 * top - self.y0, 2 * right - self.x1, 2 * bottom - self.y1


class Windows(Protocol):
    """An image whose pixels can be read by rectangles."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        ...

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return the pixels (y1 - y0, x1 - x0, C) of a rectangle."""
        ...


def make_tiles(height: int, width: int, size: int, overlap: int) -> list[Tile]:
    """Divide an image into the fewest tiles of ``size`` pixels a side that overlap by at least ``overlap`` pixels.

    Tiles are evenly spaced. A side of the image that is not longer than ``size`` is one tile long. An object of at most
    ``overlap`` pixels a side lies whole in the tile whose core has its center.

    Returns:
        The tiles, row by row.

    Raises:
        ValueError: not 0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"tiles of {size} pixels cannot overlap by {overlap}: the overlap is from 0 to below the size")
    rows, columns = (_divide(length, size, overlap) for length in (height, width))
    return [
        Tile(x0, y0, x1, y1, (core_left, core_top, core_right, core_bottom))
        for y0, y1, core_top, core_bottom in rows
        for x0, x1, core_left, core_right in columns
    ]


def _divide(length: int, size: int, overlap: int) -> list[tuple[int, int, float, float]]:
    """Divide a side into pieces: start and end of each, and of its core."""
    if length <= size:
        return [(0, length, -math.inf, math.inf)]
    number = math.ceil((length - overlap) / (size - overlap))
    starts = [i * (length - size) // (number - 1) for i in range(number)]
    ends = [start + size for start in starts]
    borders = [-math.inf, *((end + start) / 2 for end, start in zip(ends, starts[1:])), math.inf]
    return list(zip(starts, ends, borders, borders[1:]))
