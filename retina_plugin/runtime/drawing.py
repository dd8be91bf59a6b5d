"""Draws boxes with class names and scores, in Pillow."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retina_plugin.core.drawing import Color, label_font, pixels_of
from retina_plugin.core.text import one_line

_LONGEST_NAME = 40  # characters of a class name on a label
_SMALLEST = 320  # pixels of a longer side that has room for a few labels


def draw_objects(
    image: Image.Image, boxes: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> Image.Image:
    """Return a copy of an image with a box, a class name and a score for each object, the best on top.

    Lines and letters grow with the image, and an image with a longer side below 320 pixels grows by a whole factor. A
    label stands above its box, or inside where there is no room.

    Args:
        image: of any mode.
        boxes: (N, 4), XYXY in its pixels.
        class_ids: (N,), labels from 0 to K - 1.
        scores: (N,), highest first.
        class_names: K names.
    """
    factor = max(1, math.ceil(_SMALLEST / max(image.size)))
    drawn = image.convert("RGB").resize([factor * side for side in image.size], Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(drawn)
    side = (drawn.width * drawn.height) ** 0.5
    width, font = max(1, round(side / 300)), label_font(max(10, round(side / 55)))
    colors = class_colors(len(class_names))
    found = list(zip((factor * boxes).tolist(), class_ids.tolist(), scores.tolist()))[::-1]
    for box, label, _ in found:
        draw.rectangle(pixels_of(box), outline=colors[label], width=width)
    for box, label, score in found:  # over all boxes
        name = one_line(class_names[label])
        name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        draw_label(draw, drawn.size, box, f"{name} {score:.2f}", colors[label], font)
    return drawn


def class_colors(num_classes: int) -> list[Color]:
    """Bright RGB colors for black text, neighbors far apart (golden angle)."""
    hues = (0.08 + 0.618034 * np.arange(num_classes)) % 1
    rgb = (colorsys.hsv_to_rgb(hue, 0.7, 1.0) for hue in hues)
    return [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in rgb]


def draw_label(
    draw: ImageDraw.ImageDraw,
    image_size: tuple[int, int],
    box: Sequence[float],
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write a text on a background above the upper left corner of a box, or inside where there is no room."""
    left, top, right, bottom = font.getbbox(text)
    width, height = round(right - left) + 4, round(bottom - top) + 4
    x = max(0, min(round(float(box[0])), image_size[0] - width))
    y = round(float(box[1])) - height
    if y < 0:  # no room above: inside the box
        y = max(0, round(float(box[1])))
    draw.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
    draw.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)
