"""Reads image files, arrays and Pillow images, as Detectron2's ``read_image`` reads files."""

import os
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from retina_plugin.core.errors import FileError, ImageError
from retina_plugin.core.files import identify_file, require_regular_file

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for a damaged file, beside OSError and ValueError.
_DAMAGED = (EOFError, SyntaxError, IndexError, TypeError, OverflowError, struct.error, zlib.error, MemoryError)


def read_image(image: str | os.PathLike | np.ndarray | Image.Image, name: str = "image") -> Image.Image:
    """Decode an image.

    Args:
        image: a file; an array (H, W), (H, W, 1) or (H, W, 3) of uint8, three channels in the order **BGR**, as OpenCV
            reads and Detectron2's ``DefaultPredictor`` takes them; or a Pillow image, which is turned as its EXIF says.
        name: of an image that is no file, for errors.

    Returns:
        All pixels in any mode of Pillow with 8 bits a channel, turned as EXIF says. Converted to RGB, they are those
        of Detectron2's ``read_image``. Of 16-bit gray, which Detectron2 cuts at 255, this is the high byte.

    Raises:
        ImageError: the file cannot be read or decoded, or the array has another shape or type.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if isinstance(image, Image.Image):
        return _decode(image, name)
    path = os.fspath(image)
    try:
        require_regular_file(path)
        with open(path, "rb") as file:
            if kind := identify_file(file.read(64)):
                raise ImageError(path, f"it is {kind}")
            file.seek(0)
            with Image.open(file) as opened:
                return _decode(opened, path)
    except UnidentifiedImageError:
        raise ImageError(path, "it is of no image format that Pillow knows") from None
    except ImageError:
        raise
    except FileError as error:
        raise ImageError(path, str(error).removeprefix(f"{path} ").replace("is a", "it is a", 1)) from error
    except OSError as error:
        raise ImageError(path, _sentence(error)) from error
    except (ValueError, Image.DecompressionBombError, *_DAMAGED) as error:
        raise ImageError(path, _sentence(error)) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a broken EXIF, which Detectron2 ignores, too
        orientation = None
    try:
        # Not loaded before it is turned, like in Detectron2: loading a TIFF changes what its EXIF says.
        turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
        turned = image.copy() if turn is None else image.transpose(turn)
        return _to_8_bits(turned, is_16_bit=image.mode.startswith("I;16") or _is_16_bit_png(image))
    except (OSError, ValueError, Image.DecompressionBombError, *_DAMAGED) as error:
        raise ImageError(name, _sentence(error)) from error


def _is_16_bit_png(image: Image.Image) -> bool:
    return image.mode == "I" and image.format in ("PNG", "PPM")  # of Pillow before 11


def _to_8_bits(image: Image.Image, is_16_bit: bool) -> Image.Image:
    if image.mode not in ("I", "F") and not is_16_bit:
        return image
    pixels = np.asarray(image)
    if is_16_bit:
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    low, high = float(pixels.min()), float(pixels.max())
    if not (0 <= low and high <= 255):  # nor if they are NaN
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind} from {low:g} to {high:g}, with no known white: scale them to 0..255")
    return image


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        shape = "x".join(map(str, array.shape))
        raise ImageError(name, f"an image is (H, W, 3) in BGR or (H, W), of uint8, not {shape} of {array.dtype}")
    if not array.size:
        raise ImageError(name, "it has no pixels")
    return Image.fromarray(np.ascontiguousarray(array[:, :, ::-1] if array.ndim == 3 else array))


def _sentence(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
