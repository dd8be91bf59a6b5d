"""Looking into image files: size, orientation, colors, and whether they decode to their end."""

import contextlib
import io
import warnings
from typing import NamedTuple

from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader

MISSING, EMPTY, NOT_IMAGE, TRUNCATED, DAMAGED, UNREADABLE = PROBLEMS = (
    *("missing", "empty", "not-image", "truncated", "damaged", "unreadable"),
)

_ORIENTATION = 274  # EXIF tag
_SWAPS_SIDES = (5, 6, 7, 8)
_LFS = b"version https://git-lfs"


class ImageFile(NamedTuple):
    """What there is to know of a file. Without a problem, ``size`` is (width, height) of the pixels as stored."""

    problem: str = None
    detail: str = ""
    size: tuple = None
    orientation: int = 1
    mode: str = None
    transparent: bool = False

    @property
    def turned_size(self):
        """(width, height) after what EXIF says about the orientation: that of the array that Detectron2 reads."""
        return self.size[::-1] if self.swaps_sides else self.size

    @property
    def swaps_sides(self):
        return self.orientation in _SWAPS_SIDES


class ImageFiles:
    """Looks into files, each once, in parallel processes."""

    def __init__(self, *, decode=True, workers=0):
        """
        Args:
            decode: decode all pixels, or read headers alone.
            workers: processes; 0 for this one.
        """
        self._decode = decode
        self._workers = workers
        self._known = {}

    def look(self, paths):
        """list of :class:`ImageFile` of the files."""
        paths = list(paths)
        new = _Files([path for path in dict.fromkeys(paths) if path not in self._known], self._decode)
        if len(new) > 0:
            # Detectron2 reads its images the same way: so many processes, and what a worker dies of is said.
            workers = min(self._workers, len(new))
            for some in DataLoader(new, batch_size=16, num_workers=workers, collate_fn=list):
                self._known.update(some)
        return [self._known[path] for path in paths]


class _Files:
    def __init__(self, paths, decode):
        self._paths = paths
        self._decode = decode

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, index):
        path = self._paths[index]
        return path, look_into(path, decode=self._decode)


def look_into(path, *, decode=True):
    """Look into one file as Detectron2's ``read_image`` would.

    Args:
        path: of the file, or an address that Detectron2 knows.
        decode: decode all pixels; otherwise, damage behind the header is not seen, nor transparency.

    Returns:
        ImageFile
    """
    try:
        with PathManager.open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are read nevertheless
            return _look(io.BytesIO(file.read()) if decode else file, decode)
    except (FileNotFoundError, NotADirectoryError):
        return ImageFile(MISSING, f"no file {path}")
    except UnidentifiedImageError:
        return ImageFile(NOT_IMAGE, "of no format that Pillow knows")
    except Exception as error:  # Pillow raises many kinds
        return ImageFile(UNREADABLE, _sentence(error))


def _look(file, decode):
    head = file.read(64)
    if not head:
        return ImageFile(EMPTY, "0 bytes")
    if not head.strip(b"\0"):
        return ImageFile(NOT_IMAGE, "it begins with zeros: it was not written to its end")
    if head.startswith(_LFS):
        return ImageFile(NOT_IMAGE, "a git-lfs pointer: run `git lfs pull`")
    if head.lstrip()[:1] == b"<":
        return ImageFile(NOT_IMAGE, "a web page or XML")
    file.seek(0)
    image = Image.open(file)
    size, transparent = image.size, False
    orientation = _orientation(image)
    if decode:
        try:
            image.load()
            transparent = _is_transparent(image)
        except Exception as error:
            kind = TRUNCATED if "truncated" in str(error) else DAMAGED
            return ImageFile(kind, _sentence(error))
        damage = _unseen_damage(image.format, file)
        if damage:
            return ImageFile(DAMAGED, damage)
    return ImageFile(None, "", size, orientation, image.mode, transparent)


def _orientation(image):
    with contextlib.suppress(Exception):  # a broken EXIF, which Detectron2 passes over as well
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _is_transparent(image):
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255


def _unseen_damage(image_format, file):
    """What is wrong with a file that decodes without a word, or None."""
    data = file.getvalue()
    if image_format == "JPEG":
        # A download that reserved its space first: the decoder paints the rest gray.
        end = data.rstrip(b"\0")
        if len(data) - len(end) >= 16 and not end.endswith(b"\xff\xd9"):
            return f"its last {len(data) - len(end)} bytes are zeros: it was not written to its end"
    elif image_format == "PNG":
        try:
            Image.open(io.BytesIO(data)).verify()  # compares the checksums, which decoding does not
        except Exception as error:
            return _sentence(error)
    return None


def _sentence(error):
    return " ".join(str(error).split()) or type(error).__name__
