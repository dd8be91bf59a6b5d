"""Rectangles of image files have the pixels of Detectron2's ``read_image``, however they are read."""

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from retina_plugin.core.errors import FileError
from retina_plugin.data import png_rows, windows
from retina_plugin.data.reading import UNREADABLE
from retina_plugin.data.windows import ArrayWindows, WindowsMapper, open_windows


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(windows, "WHOLE", 0)
    monkeypatch.setattr(png_rows, "_PIXELS_AT_ONCE", 700)  # a few rows
    monkeypatch.setattr(png_rows, "_BYTES_AT_ONCE", 1000)


def make_image(rng, mode="RGB"):
    """Smooth and noisy parts, for which a PNG's rows are coded in different ways."""
    width, height = (int(n) for n in rng.integers(50, 90, 2))
    smooth = np.add.outer(np.arange(height) * 2, np.arange(width))[..., None] * [1, 2, 3] % 256
    pixels = np.where(np.arange(height)[:, None, None] % 16 < 8, smooth, rng.integers(0, 256, (height, width, 3)))
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((pixels[..., 0] * 257).astype(np.uint16))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., 0].astype(np.uint8)))
    return image.convert(mode)


def assert_same(path, image_format, rng, kind):
    opened, whole = open_windows(str(path), image_format), read_image(str(path), format=image_format)
    assert type(opened).__name__ == kind
    height, width = whole.shape[:2]
    assert opened.shape == (height, width)
    for _ in range(8):  # in any order, up as well as down
        x0, y0 = (int(rng.integers(0, side)) for side in (width, height))
        x1, y1 = int(rng.integers(x0, width)) + 1, int(rng.integers(y0, height)) + 1
        assert np.array_equal(opened.read(x0, y0, x1, y1), whole[y0:y1, x0:x1])
    assert np.array_equal(opened.read(0, 0, width, height), whole)


@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L", "YUV-BT.601"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_png(tmp_path, seed, mode, image_format):
    rng = np.random.default_rng(seed)
    make_image(rng, mode).save(tmp_path / "image.png")
    assert_same(tmp_path / "image.png", image_format, rng, "_PngWindows")


@pytest.mark.parametrize(
    ("name", "mode", "options", "kind"),
    [
        ("gray.jpg", "L", {}, "_PillowWindows"),
        ("colors.jpg", "RGB", {"quality": 80}, "_PillowWindows"),
        ("inks.jpg", "CMYK", {}, "_PillowWindows"),
        ("scan.tif", "RGB", {"compression": "tiff_lzw"}, "_PillowWindows"),
        ("deep.png", "I;16", {}, "ArrayWindows"),
        ("bits.png", "1", {}, "ArrayWindows"),
    ],
)
@pytest.mark.parametrize("image_format", ["BGR", "L"])
def test_other_files(tmp_path, seed, name, mode, options, kind, image_format):
    rng = np.random.default_rng(seed)
    make_image(rng, mode).save(tmp_path / name, **options)
    assert_same(tmp_path / name, image_format, rng, kind)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_turned_by_exif(tmp_path, seed, ending, orientation):
    rng, exif = np.random.default_rng(seed), Image.Exif()
    exif[274] = orientation
    make_image(rng).save(tmp_path / f"turned.{ending}", exif=exif)
    kind = "_PillowWindows" if (ending, orientation) == ("jpg", 1) else "ArrayWindows"
    assert_same(tmp_path / f"turned.{ending}", "BGR", rng, kind)


def test_turned_by_the_text_of_a_png(tmp_path, seed):
    rng, text = np.random.default_rng(seed), PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    make_image(rng).save(tmp_path / "turned.png", pnginfo=text)
    assert_same(tmp_path / "turned.png", "BGR", rng, "ArrayWindows")
    text = PngInfo()
    text.add_text("Software", "any")
    make_image(rng).save(tmp_path / "plain.png", pnginfo=text)
    assert_same(tmp_path / "plain.png", "BGR", rng, "_PngWindows")


def test_what_pillow_holds_for_a_bomb_is_read(tmp_path, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    expected = {}
    for name in ("image.png", "image.jpg"):
        make_image(rng).save(tmp_path / name)
        expected[name] = read_image(str(tmp_path / name), "BGR")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, pixels in expected.items():
        with pytest.raises(Image.DecompressionBombError):
            read_image(str(tmp_path / name), "BGR")
        height, width = pixels.shape[:2]
        assert np.array_equal(open_windows(str(tmp_path / name), "BGR").read(0, 0, width, height), pixels)
        assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(windows, "MOST", 2000)  # the limit of tiles
    with pytest.raises(Image.DecompressionBombError):
        open_windows(str(tmp_path / "image.png"), "BGR")


def test_small_images_are_read_at_once(tmp_path, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    image = make_image(rng)
    monkeypatch.setattr(windows, "WHOLE", image.width * image.height)
    image.save(tmp_path / "image.png")
    assert isinstance(open_windows(str(tmp_path / "image.png"), "BGR"), ArrayWindows)


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
def test_files_that_are_cut_off(tmp_path, seed, name):
    rng = np.random.default_rng(seed)
    make_image(rng).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(UNREADABLE, match="truncated"):
        opened = open_windows(str(tmp_path / name), "BGR")
        opened.read(0, 0, *opened.shape[::-1])


def test_a_png_that_is_damaged_inside(tmp_path, seed):
    """Its error names the image, though no mapper is at work."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "image.png"
    make_image(rng).save(path)
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    path.write_bytes(data[:start] + b"no zlib stream" + data[start + 14 :])
    opened = WindowsMapper("BGR")({"file_name": str(path), "image_id": 1})["windows"]
    with pytest.raises(FileError, match=r"image.png cannot be read \(.*an evaluation needs every image"):
        opened.read(0, 0, *opened.shape[::-1])
