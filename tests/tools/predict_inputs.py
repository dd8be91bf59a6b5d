"""Files that are no images, or odd ones, as they come with folders of a million."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from ..runtime.conftest import pixels


def encoded(image_format, image=None, **options):
    file = io.BytesIO()
    (image or Image.fromarray(pixels(60, 80))).save(file, image_format, **options)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises pixels that are not there."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def write_broken(folder):
    """Write files that cannot be read; returns name -> a part of the reason."""
    jpeg, png = encoded("JPEG"), encoded("PNG")
    broken = {
        "empty.jpg": (b"", "empty file"),
        "zeros.jpg": (bytes(500), "begins with zeros"),
        "text.jpg": (b"a list of things\n" * 20, "no image format"),
        "page.png": (b"<!DOCTYPE html><html>log in</html>", "web page"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
        "archive.jpg": (b"\x1f\x8b\x08" + bytes(range(100)), "gzip"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "header_only.jpg": (jpeg[:30], ""),
        "cut.png": (png[: len(png) // 2], ""),
        "cut_header.png": (png[:20], ""),
        "lies.png": (png_of_size(500, 500), ""),
        "no_width.png": (png_of_size(0, 10), ""),
        "bomb.png": (png_of_size(60000, 60000), "decompression bomb"),
        "cut.gif": (encoded("GIF", Image.fromarray(pixels(60, 80)).quantize(64))[:400], ""),
        "cut.webp": (encoded("WEBP")[:200], ""),
        "cut.tif": (encoded("TIFF", compression="tiff_lzw")[:300], ""),
        "cut.bmp": (encoded("BMP")[:300], "truncated"),
        "white_unknown.tif": (encoded("TIFF", Image.fromarray(pixels(9, 9, 1).astype(np.float32) * 9)), "scale them"),
        "narrow.png": (encoded("PNG", Image.fromarray(pixels(2000, 1))), "leaves no pixel of its shorter side"),
        "video.mp4": (b"no video at all" * 50, "OpenCV cannot open it"),
        "empty.avi": (b"", "OpenCV cannot open it"),
        "random.tiff": (b"II*\0" + np.random.default_rng().bytes(300), ""),
        "random.ppm": (b"P6\n50 50\n255\n" + bytes(20), ""),
    }
    for name, (data, _) in broken.items():
        (folder / name).write_bytes(data)
    reasons = {name: reason for name, (_, reason) in broken.items()}
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("gone")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "device.jpg").symlink_to("/dev/zero")
    reasons |= {"folder.jpg": "a folder", "pipe.jpg": "a named pipe", "link.jpg": "does not exist"}
    reasons |= {"circle.png": "in a circle", "device.jpg": "a device"}
    if os.geteuid():  # root reads everything
        (folder / "forbidden.jpg").write_bytes(jpeg)
        (folder / "forbidden.jpg").chmod(0)
        reasons["forbidden.jpg"] = "Permission denied"
    return reasons


def write_odd(folder):
    """Write images of unusual kinds that can be read; returns their names."""
    image = Image.fromarray(pixels(60, 80))
    deep = Image.fromarray(np.random.default_rng().integers(0, 65536, (60, 80), dtype=np.uint16))
    odd = {
        "deep.png": encoded("PNG", deep),
        "cmyk.jpg": encoded("JPEG", image.convert("CMYK")),
        "la.png": encoded("PNG", image.convert("LA")),
        "bits.png": encoded("PNG", image.convert("1")),
        "palette.png": encoded("PNG", image.quantize(16), transparency=2),
        "moving.gif": encoded("GIF", image.quantize(), save_all=True, append_images=[image.quantize()]),
        "p.webp": encoded("WEBP", image.convert("RGBA")),
        "float.tiff": encoded("TIFF", Image.fromarray(pixels(60, 80, 1).astype(np.float32))),
        "pixel.png": encoded("PNG", Image.fromarray(pixels(1, 1))),
        "thin.png": encoded("PNG", Image.fromarray(pixels(3, 80))),
        "wrong_suffix.png": encoded("JPEG"),
        "line\nend.jpg": encoded("JPEG"),
        "\udcff.jpg": encoded("JPEG"),
        "kätzchen 猫.jpg": encoded("JPEG"),
        "UPPER.JPG": encoded("JPEG"),
        "bad_exif.jpg": encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"),
    }
    for name, data in odd.items():
        (folder / name).write_bytes(data)
    return list(odd)
