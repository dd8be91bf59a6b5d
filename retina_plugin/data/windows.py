"""Reads rectangles of image files, large ones without holding all of their pixels.

Pixels are those of Detectron2's ``read_image`` in every case.

=====================================================  =========================  ===============================
image                                                  read by                    most memory, bytes a pixel
=====================================================  =========================  ===============================
up to ``WHOLE`` pixels                                 ``read_image``             14
larger: PNG of 8 bits, not interlaced, without EXIF    rows, from top to bottom   rows of the rectangle, 6 each
larger: any other that its EXIF does not turn          Pillow, once               4
larger: all others                                     ``read_image``             14
=====================================================  =========================  ===============================

Pillow refuses images of more than 179 million pixels, since a small file of someone else may unpack to a very large
image. Tiles are asked for by name, for large images: here the limit is ``MOST`` pixels.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.data.detection_utils import check_image_size, convert_PIL_to_numpy, read_image
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from retina_plugin.core.files import refuse_special_file
from retina_plugin.core.tiles import Windows
from retina_plugin.data.png_rows import PngRows
from retina_plugin.data.reading import explain_unreadable

WHOLE, MOST = 2**25, 2**30  # pixels


class ArrayWindows:
    """An image in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        """``pixels`` are (H, W, C)."""
        self._pixels = pixels

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self._pixels.shape[:2]
        return height, width

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._pixels[y0:y1, x0:x1]


class _PillowWindows:
    """An image that Pillow decodes when it is first read, and converts by rectangles."""

    def __init__(self, image: Image.Image, image_format: str) -> None:
        self._image = image
        self._format = image_format

    @property
    def shape(self) -> tuple[int, int]:
        return self._image.height, self._image.width

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return convert_PIL_to_numpy(self._image.crop((x0, y0, x1, y1)), self._format)


class _PngWindows:
    """A PNG file of which the rows between the top of the last rectangle and its bottom are held."""

    def __init__(self, rows: PngRows, image_format: str) -> None:
        self._rows = rows
        self._format = image_format
        self._top = 0
        self._held: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows.height, self._rows.width

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        held = self._held
        if held is None or y0 < self._top:
            self._rows.restart()
            held, self._top = None, 0
        parts = [] if held is None else [held[y0 - self._top :]]
        while self._rows.position < y1:
            first = self._rows.position
            band = convert_PIL_to_numpy(self._rows.read(y1 - first), self._format)
            parts.append(band[max(0, y0 - first) :])
        # A copy only with new rows; slices of what is held would keep all of it.
        self._held = held = np.concatenate(parts) if len(parts) > 1 or y0 > self._top else parts[0]
        self._top = y0
        return held[: y1 - y0, x0:x1]


def open_windows(file_name: str, image_format: str) -> Windows:
    """Open an image file to read its rectangles. Of a large one, pixels are decoded when they are first read.

    Args:
        file_name: a path or address that Detectron2 knows.
        image_format: ``INPUT.FORMAT``.

    Raises:
        FileError: it is a named pipe, a socket or a device.
        OSError, ValueError, DecompressionBombError: it cannot be read as an image, or has more than ``MOST`` pixels;
            see :data:`retina_plugin.data.reading.UNREADABLE`.
    """
    refuse_special_file(file_name)
    with _pillow_limit():
        file = PathManager.open(file_name, "rb")
        image = Image.open(file)
        if image.width * image.height > WHOLE:
            if image.format != "PNG":  # of which Pillow decodes all pixels to look for its EXIF
                if image.getexif().get(ExifTags.Base.Orientation, 1) in (0, 1):  # which turn nothing
                    return _PillowWindows(image, image_format)
            elif (rows := PngRows.open(file)) is not None:
                return _PngWindows(rows, image_format)
        file.close()
        return ArrayWindows(read_image(file_name, format=image_format))


class WindowsMapper:
    """Opens the images of an evaluation for :class:`retina_plugin.modeling.inference.tiled.TiledInference`."""

    def __init__(self, image_format: str) -> None:
        self._format = image_format

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a dataset dict with ``windows`` in place of its annotations. For errors, see :func:`open_windows`."""
        name = record["file_name"]
        windows = open_windows(name, self._format)
        example = {key: value for key, value in record.items() if key != "annotations"}
        check_image_size(example, windows)
        return {**example, "windows": _NamedWindows(windows, name)}


class _NamedWindows:
    """Windows of an evaluation, whose pixels are read when no mapper is at work any more."""

    def __init__(self, windows: Windows, name: str) -> None:
        self._windows = windows
        self._name = name

    @property
    def shape(self) -> tuple[int, int]:
        return self._windows.shape

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        with explain_unreadable(self._name):
            return self._windows.read(x0, y0, x1, y1)


@contextlib.contextmanager
def _pillow_limit() -> Iterator[None]:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST // 2  # which is where Pillow warns
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
