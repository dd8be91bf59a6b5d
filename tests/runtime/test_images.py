"""Reading images: the pixels of Detectron2's ``read_image``, in every way that files store them."""

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from retina_plugin.core.errors import ImageError
from retina_plugin.runtime.images import read_image

from .conftest import exif, pixels


def image_of(mode):
    size = 17, 24
    if mode == "P+transparency":
        image = Image.fromarray(pixels(*size)).quantize(16)
        image.info["transparency"] = 3
        return image
    if mode == "1":
        return Image.fromarray(pixels(*size, 1)).convert("1")
    if mode in ("I", "F"):
        return Image.fromarray(pixels(*size, 1).astype(np.int32 if mode == "I" else np.float32))
    return Image.fromarray(pixels(*size)).convert("L" if mode == "LA" else mode).convert(mode)


WAYS = [("L", "png"), ("L", "jpg"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("P+transparency", "png"), ("1", "png")]
WAYS += [("1", "tiff"), ("CMYK", "jpg"), ("CMYK", "tiff"), ("YCbCr", "jpg"), ("RGBA", "webp"), ("RGBA", "tiff")]
WAYS += [("RGB", "webp"), ("RGB", "bmp"), ("RGB", "ppm"), ("LAB", "tiff"), ("I", "tiff"), ("F", "tiff")]


@pytest.mark.parametrize("mode, suffix", WAYS)
def test_modes(tmp_path, mode, suffix):
    image_of(mode).save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")
    assert np.array_equal(found.convert("RGB"), detectron2_read_image(str(tmp_path / f"a.{suffix}"), "RGB"))
    assert (found.height, found.width) == (17, 24) and np.asarray(found).std() > 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientations(tmp_path, suffix):
    image = image_of("RGB")
    for orientation in range(10):  # 0 and 9 mean nothing
        image.save(tmp_path / f"a.{suffix}", exif=exif(orientation))
        found = read_image(tmp_path / f"a.{suffix}")
        assert np.array_equal(found.convert("RGB"), detectron2_read_image(str(tmp_path / f"a.{suffix}"), "RGB"))
        if suffix != "tiff":
            assert (found.size == (17, 24)) == (orientation in (5, 6, 7, 8))
            with Image.open(tmp_path / f"a.{suffix}") as opened:
                assert np.array_equal(read_image(opened), found)


def test_16_bits_are_scaled(tmp_path):
    values = np.random.default_rng().integers(0, 65536, (9, 7), dtype=np.uint16)
    for suffix in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), values // 256)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    for value in (-1, 256, *([np.nan] if dtype == np.float32 else [])):
        values = pixels(5, 5, 1).astype(dtype)
        values[2, 2] = value
        Image.fromarray(values).save(tmp_path / "a.tiff")
        with pytest.raises(ImageError, match="no known white: scale them"):
            read_image(tmp_path / "a.tiff")


def test_arrays_are_bgr():
    bgr = pixels(6, 5)
    assert np.array_equal(read_image(bgr), bgr[:, :, ::-1])
    gray = pixels(6, 5, 1)
    for array in (gray, gray[:, :, None]):
        assert np.array_equal(read_image(array).convert("RGB"), np.repeat(gray[:, :, None], 3, axis=2))


def test_an_animation_is_its_first_image(tmp_path):
    frames = [image_of("P") for _ in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "a.gif").convert("RGB"), frames[0].convert("RGB"))
