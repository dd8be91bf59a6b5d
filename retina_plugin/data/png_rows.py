"""Reads the rows of a PNG file from top to bottom, without decoding the whole image.

A row of a PNG is coded by its differences from the row above, and all rows are one stream of zlib. Some rows of it,
below the last row that was decoded, are a PNG of their own, which Pillow decodes.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type: gray, RGB, palette, gray and alpha, RGB and alpha
_PIXELS_AT_ONCE = 2**22
_BYTES_AT_ONCE = 2**20
# Where Pillow finds an orientation of the image.
_EXIF_KEYS = (b"Raw profile type exif", b"XML:com.adobe.xmp")


class _Header(NamedTuple):
    """Chunk IHDR."""

    width: int
    height: int
    bits: int
    color_type: int
    compression: int
    filters: int
    interlace: int


class PngRows:
    """The rows of an image in order.

    Attributes:
        width, height: of the image, in pixels.
        position: the row that is read next.
    """

    def __init__(self, file: IO[bytes], header: _Header, palette: bytes, data: list[tuple[int, int]]) -> None:
        """See :meth:`open`."""
        self.width, self.height = header.width, header.height
        self._file, self._header, self._palette, self._data = file, header, palette, data
        self._row_bytes = header.width * _CHANNELS[header.color_type]
        self.restart()

    @classmethod
    def open(cls, file: IO[bytes]) -> "PngRows | None":
        """Find the pixel data of a PNG file.

        Args:
            file: a PNG file, which stays open.

        Returns:
            None if its rows cannot be decoded one after the other, have no 8 bits a channel, may be turned by EXIF, or
            are animated.

        Raises:
            OSError: the file is cut off.
        """
        header, palette, data, offset = None, b"", [], len(_SIGNATURE)
        while True:
            file.seek(offset)
            length, kind = struct.unpack(">I4s", _exactly(file, 8))
            if kind == b"IHDR":
                header = _Header(*struct.unpack(">IIBBBBB", _exactly(file, 13)))
                if header.bits != 8 or header.interlace or header.color_type not in _CHANNELS:
                    return None
            elif kind in (b"PLTE", b"tRNS"):
                palette += _chunk(kind, _exactly(file, length))
            elif kind == b"IDAT":
                data.append((offset + 8, length))
            elif kind in (b"eXIf", b"acTL") or (
                kind in (b"tEXt", b"zTXt", b"iTXt") and file.read(32).startswith(_EXIF_KEYS)
            ):
                return None
            elif kind == b"IEND":
                return None if header is None else cls(file, header, palette, data)
            offset += 8 + length + 4  # the checksum

    def restart(self) -> None:
        """Begin with row 0 again."""
        self.position = 0
        self._above = bytes(self._row_bytes)
        self._inflate = zlib.decompressobj()
        self._compressed = self._read_compressed()

    def read(self, number: int) -> Image.Image:
        """Decode the next rows.

        Args:
            number: of rows that are wanted; fewer may come, at least one.

        Raises:
            OSError: the file is cut off, or its data are damaged.
            zlib.error: its data are damaged.
        """
        number = min(number, self.height - self.position, max(1, _PIXELS_AT_ONCE // self.width))
        rows = b"\0" + self._above + self._filtered(number * (1 + self._row_bytes))  # 0: not a difference
        chunks = (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", *self._header._replace(height=number + 1))),
            self._palette,
            _chunk(b"IDAT", zlib.compress(rows, 0)),
            _chunk(b"IEND", b""),
        )
        decoded = Image.open(io.BytesIO(_SIGNATURE + b"".join(chunks)))
        image = decoded.crop((0, 1, self.width, number + 1))
        self.position += number
        self._above = image.crop((0, number - 1, self.width, number)).tobytes()
        return image

    def _filtered(self, length: int) -> bytes:
        parts = []
        while length:
            data = self._inflate.unconsumed_tail or next(self._compressed, b"")
            part = self._inflate.decompress(data, length)
            if not part and not data:
                raise OSError("image file is truncated")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _read_compressed(self) -> Iterator[bytes]:
        for offset, length in self._data:
            for start in range(0, length, _BYTES_AT_ONCE):
                self._file.seek(offset + start)
                yield _exactly(self._file, min(_BYTES_AT_ONCE, length - start))


def _exactly(file: IO[bytes], length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise OSError("image file is truncated")
    return data


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
