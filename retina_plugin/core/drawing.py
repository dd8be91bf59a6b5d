"""Draws grids of images with boxes and text, by Pillow."""

import functools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from retina_plugin.core.files import atomic_write

Color = tuple[int, int, int]

PAPER, TEXT, QUIET = (24, 26, 32), (240, 240, 240), (160, 166, 178)
GAP = 8


@functools.lru_cache(maxsize=64)
def label_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return DejaVu Sans of Matplotlib in a size in pixels, which has most alphabets; without Matplotlib, Pillow's."""
    try:
        import matplotlib
    except ImportError:
        return ImageFont.load_default(size)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)


def pixels_of(box: Sequence[float]) -> list[int]:
    """Return the pixels (inclusive) of an edge-to-edge box; Pillow refuses boxes whose second corner comes first."""
    x0, y0, x1, y1 = (round(float(c)) for c in box)
    return [x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)]


def draw_dashed(draw: ImageDraw.ImageDraw, box: Sequence[float], color: Color, dash: int = 4) -> None:
    """Draw a dashed box, XYXY in pixels."""
    x0, y0, x1, y1 = pixels_of(box)
    for x in range(x0, x1 + 1, 2 * dash):
        for y in (y0, y1):
            draw.line([x, y, min(x + dash - 1, x1), y], fill=color)
    for y in range(y0, y1 + 1, 2 * dash):
        for x in (x0, x1):
            draw.line([x, y, x, min(y + dash - 1, y1)], fill=color)


def on_square(image: Image.Image, side: int) -> Image.Image:
    """Paste an image into the middle of a square tile."""
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def arrange(tiles: Sequence[Image.Image], columns: int, header: int) -> Image.Image:
    """Arrange square tiles of one size in rows, below a header of so many pixels."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    step = tiles[0].width + GAP
    sheet = Image.new("RGB", (GAP + columns * step, header + rows * step), PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + i % columns * step, header + i // columns * step))
    return sheet


def save_png(sheet: Image.Image, path: Path) -> Path:
    """Write a PNG of 256 colors, which are hard to tell from all of them here, and make it four times smaller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = sheet.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    atomic_write(path, lambda file: palette.save(file, "PNG", optimize=True))
    return path
