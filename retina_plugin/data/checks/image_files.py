"""Reads image files: size, orientation, colors, and whether all pixels can be decoded."""

import contextlib
import io
import warnings
from collections.abc import Iterable
from typing import IO, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from retina_plugin.core.files import identify_file, refuse_special_file

# Without "image-", the names of the kinds of findings.
MISSING, EMPTY, NOT_IMAGE = "missing", "empty", "not-image"
TRUNCATED, DAMAGED, UNREADABLE = "truncated", "damaged", "unreadable"

_SWAPS_SIDES = (5, 6, 7, 8)


class ImageFile(NamedTuple):
    """A file that was read. With a problem, only ``detail`` is set as well."""

    problem: str | None = None
    detail: str = ""
    size: tuple[int, int] = (0, 0)  # width and height of the pixels as stored
    orientation: int = 1
    mode: str = ""
    transparent: bool = False

    @property
    def turned_size(self) -> tuple[int, int]:
        """Width and height of the array that Detectron2 reads, which is turned as EXIF says."""
        return self.size[::-1] if self.swaps_sides else self.size

    @property
    def swaps_sides(self) -> bool:
        return self.orientation in _SWAPS_SIDES


class ImageFiles:
    """Reads files, each once, in ``workers`` processes (0 for this one): all pixels or, without ``decode``, headers."""

    def __init__(self, *, decode: bool = True, workers: int = 0):
        self._decode = decode
        self._workers = workers
        self._known: dict[str, ImageFile] = {}

    def look(self, paths: Iterable[str]) -> list[ImageFile]:
        paths = list(paths)
        new = _Files([path for path in dict.fromkeys(paths) if path not in self._known], self._decode)
        if len(new) > 0:
            workers = min(self._workers, len(new))
            for some in DataLoader(new, batch_size=16, num_workers=workers, collate_fn=list):
                self._known.update(some)
        return [self._known[path] for path in paths]


class _Files(Dataset):
    def __init__(self, paths: list[str], decode: bool):
        self._paths = paths
        self._decode = decode

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, ImageFile]:
        path = self._paths[index]
        return path, look_into(path, decode=self._decode)


def look_into(path: str, *, decode: bool = True) -> ImageFile:
    """Read one file as Detectron2's ``read_image`` would.

    Args:
        path: a file, or an address that Detectron2 knows.
        decode: decode all pixels; otherwise, damage behind the header and transparency are not found.
    """
    try:
        refuse_special_file(path)
        with PathManager.open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about some files that it can read
            return _look(io.BytesIO(file.read()) if decode else file, decode)
    except (FileNotFoundError, NotADirectoryError):
        return ImageFile(MISSING, f"no file {path}")
    except UnidentifiedImageError:
        return ImageFile(NOT_IMAGE, "of no format that Pillow knows")
    except Exception as error:  # Pillow raises many kinds
        return ImageFile(UNREADABLE, _sentence(error))


def _look(file: IO[bytes], decode: bool) -> ImageFile:
    head = file.read(64)
    if not head:
        return ImageFile(EMPTY, "0 bytes")
    other = identify_file(head)
    if other:
        return ImageFile(NOT_IMAGE, other)
    file.seek(0)
    image = Image.open(file)
    size, orientation, transparent = image.size, 1, False
    with contextlib.suppress(Exception):  # a broken EXIF, which Detectron2 ignores, too
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if decode:
        try:
            image.load()
            transparent = _is_transparent(image)
        except Exception as error:
            return ImageFile(TRUNCATED if "truncated" in str(error) else DAMAGED, _sentence(error))
        file.seek(0)
        damage = _unseen_damage(image.format, file.read())
        if damage:
            return ImageFile(DAMAGED, damage)
    return ImageFile(None, "", size, orientation, image.mode, transparent)


def _is_transparent(image: Image.Image) -> bool:
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return "A" in image.getbands() and bool((np.asarray(image.getchannel("A")) < 255).any())


def _unseen_damage(image_format: str | None, data: bytes) -> str | None:
    """The damage of a file that is decoded without an error."""
    if image_format == "JPEG":
        # Left by a download that reserves its space first: the decoder paints the rest gray.
        end = data.rstrip(b"\0")
        if len(data) - len(end) >= 16 and not end.endswith(b"\xff\xd9"):
            return f"its last {len(data) - len(end)} bytes are zeros: it was not written to its end"
    elif image_format == "PNG":
        try:
            Image.open(io.BytesIO(data)).verify()  # compares the checksums, which decoding does not
        except Exception as error:
            return _sentence(error)
    return None


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
