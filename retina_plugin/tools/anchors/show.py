"""Draws training images as the model sees them, with their boxes and the anchors that are assigned to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from PIL import Image, ImageDraw
from tqdm import tqdm

from retina_plugin.core.drawing import (
    GAP,
    QUIET,
    TEXT,
    Color,
    arrange,
    draw_dashed,
    label_font,
    on_square,
    pixels_of,
    save_png,
)
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import refuse_special_file
from retina_plugin.core.rng import seeded
from retina_plugin.core.text import list_some, one_line
from retina_plugin.data.reading import UNREADABLE, file_name_of
from retina_plugin.data.tiles import build_train_mapper
from retina_plugin.data.training_boxes import build_mapper_quietly, spread, stack
from retina_plugin.modeling.anchor_coverage import AnchorCoverage
from retina_plugin.tools.anchors.coverage import count_positives
from retina_plugin.tools.anchors.output import new_files
from retina_plugin.tools.anchors.training_set import read_training_images

NUM_IMAGES = 8

_PER_SHEET = 4
_COLUMNS = 2
_TILE = 640  # pixels
_HEADER = 84
_GREEN, _RED = (60, 220, 90), (255, 60, 60)  # of ground truth
# Of levels, apart from each other and from green and red.
_LEVEL_COLORS: tuple[Color, ...] = ((86, 180, 255), (255, 220, 60), (255, 120, 220), (255, 150, 40), (190, 150, 255))


@dataclass
class Example:
    """A training example on the way to the model, and the anchors that its boxes have."""

    pixels: np.ndarray  # uint8 (H, W, 3), RGB, with the anchors' coordinates
    covered: np.ndarray  # float32 (number, 4), boxes with an anchor of the positive IoU, XYXY in pixels
    low_quality: np.ndarray  # boxes that the assigner gives positive anchors, all with a lower IoU
    unmatched: np.ndarray  # boxes without positive anchors
    positive: list[np.ndarray]  # of each level, float32 (number, 4)
    ignored: list[np.ndarray]


def show_anchors(
    cfg: CfgNode,
    output_dir: Path,
    *,
    overwrite: bool = False,
    num_images: int = NUM_IMAGES,
    seed: int = 0,
) -> list[Path]:
    """Draw training images of ``DATASETS.TRAIN`` after Detectron2's mapper: resized, flipped, cropped as in training.

    A box is green if it has a positive anchor, red if it has none, and dashed red if it has low-quality matches alone.
    Anchors have the color of their level; positive ones are solid, ignored ones dashed.

    Args:
        cfg: of :func:`~retina_plugin.tools.anchors.training_set.read_training_config`.
        output_dir: gets PNG files of four images each, ``anchors_1.png``, ...
        overwrite: whether they may replace files.
        num_images: images to draw, spread evenly over those of the data set that a training takes.
        seed: of the augmentations.

    Returns:
        The files.

    Raises:
        ConfigError: the data set cannot be used, its images cannot be read, or the assigner needs predictions.
        FileError: a file to write exists.
    """
    if num_images < 1:
        raise ValueError(f"--num-images is {num_images}: show at least one image")
    images = read_training_images(cfg)
    coverage = AnchorCoverage(cfg)
    if not coverage.assigns_before_forward:
        raise ConfigError([
            f"MODEL.RETINANET.ASSIGNER {cfg.MODEL.RETINANET.ASSIGNER} looks at predictions: what it assigns changes in "
            "training and cannot be shown before"
        ])  # fmt: skip
    chosen = [images[i] for i in spread(images, num_images)]
    number = -(-len(chosen) // _PER_SHEET)
    paths = new_files(output_dir, [f"anchors_{i}.png" for i in range(1, number + 1)], overwrite)
    mapper, examples = build_train_mapper(cfg, build_mapper_quietly(cfg)), []
    for i, image in enumerate(tqdm(chosen, "images", leave=False, disable=None)):
        refuse_special_file(file_name_of(image))
        try:
            with seeded(seed, i):
                example = mapper(image)
        except UNREADABLE as error:
            raise ConfigError([
                f"{file_name_of(image)} cannot be read: {error}. "
                "`python -m retina_plugin check-data NAME` names all such images"
            ]) from error  # fmt: skip
        examples.append(_assigned(coverage, example, cfg.INPUT.FORMAT))
    names = list_some(cfg.DATASETS.TRAIN, 3)
    for sheet, path in enumerate(paths):
        some = examples[sheet * _PER_SHEET : (sheet + 1) * _PER_SHEET]
        title = f"{names}: training images {sheet * _PER_SHEET + 1} to {sheet * _PER_SHEET + len(some)}"
        save_png(_draw_sheet(some, coverage.levels, title), path)
    return paths


def _assigned(coverage: AnchorCoverage, example: dict[str, Any], image_format: str) -> Example:
    instances = example["instances"]
    anchors, targets = coverage.assign(instances)
    numbers = [len(level) for level in anchors]
    positive = targets.is_positive(coverage.num_classes)[0].split(numbers)
    ignored = (targets.labels[0] == -1).split(numbers)
    pixels = example["image"].permute(1, 2, 0).numpy()
    boxes, sizes = stack([instances])
    has_positives = count_positives(coverage, instances).sum(axis=1) > 0
    is_covered = has_positives & (coverage.best(boxes, sizes)[0] >= coverage.threshold)
    return Example(
        pixels=convert_image_to_rgb(pixels, image_format).astype(np.uint8),
        covered=boxes[is_covered],
        low_quality=boxes[has_positives & ~is_covered],
        unmatched=boxes[~has_positives],
        positive=[level.tensor[which].numpy() for level, which in zip(anchors, positive)],
        ignored=[level.tensor[which].numpy() for level, which in zip(anchors, ignored)],
    )


def _draw_sheet(examples: Sequence[Example], levels: Sequence[str], title: str) -> Image.Image:
    sheet = arrange([_draw_example(example) for example in examples], _COLUMNS, _HEADER)
    if sheet.width < 2 * _TILE:  # a single column has no room for the legend
        sheet = sheet.crop((0, 0, 2 * (_TILE + GAP) + GAP, sheet.height))
    _draw_legend(ImageDraw.Draw(sheet), examples, levels, title)
    return sheet


def _draw_example(example: Example) -> Image.Image:
    height, width = example.pixels.shape[:2]
    scale = _TILE / max(height, width)
    size = [max(1, round(side * scale)) for side in (width, height)]
    tile = Image.fromarray(example.pixels).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(tile)
    for level, anchors in enumerate(example.ignored):
        for box in anchors * scale:
            draw_dashed(draw, box, _color(level), dash=3)
    for level, anchors in enumerate(example.positive):
        for box in anchors * scale:
            draw.rectangle(pixels_of(box), outline=_color(level))
    for boxes, color in ((example.covered, _GREEN), (example.unmatched, _RED)):
        for box in boxes * scale:
            draw.rectangle(pixels_of(box), outline=color, width=3)
    for box in example.low_quality * scale:
        _draw_thick_dashed(draw, box, _RED)
    return on_square(tile, _TILE)


def _draw_legend(draw: ImageDraw.ImageDraw, examples: Sequence[Example], levels: Sequence[str], title: str) -> None:
    draw.text((GAP, 8), one_line(title), fill=TEXT, font=label_font(17, bold=True))
    covered, low_quality, unmatched = (
        sum(map(len, boxes)) for boxes in zip(*((e.covered, e.low_quality, e.unmatched) for e in examples))
    )
    x = _draw_entry(draw, (GAP, 36), f"{covered} boxes with positive anchors", _GREEN, 3)
    x = _draw_entry(draw, (x, 36), f"{low_quality} with low-quality matches alone", _RED)
    x = _draw_entry(draw, (x, 36), f"{unmatched} without", _RED, 3)
    draw.text((x, 36), "anchors: positive solid, ignored dashed", fill=QUIET, font=label_font(13))
    anchors_of_kinds = [e.positive for e in examples], [e.ignored for e in examples]
    x = GAP
    for level, name in enumerate(levels):
        positive, ignored = (sum(len(anchors[level]) for anchors in each) for each in anchors_of_kinds)
        x = _draw_entry(draw, (x, 60), f"{name}: {positive} positive, {ignored} ignored", _color(level), 2)


def _draw_entry(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, color: Color, width: int = 0) -> int:
    """Draw an entry of the legend, dashed if ``width`` is 0; returns where the next one begins."""
    x, y = at
    if width:
        draw.rectangle([x, y + 2, x + 20, y + 15], outline=color, width=width)
    else:
        _draw_thick_dashed(draw, (x, y + 2, x + 21, y + 16), color)
    draw.text((x + 28, y), text, fill=TEXT, font=label_font(13))
    return x + 28 + round(draw.textlength(text, label_font(13))) + 3 * GAP


def _draw_thick_dashed(draw: ImageDraw.ImageDraw, box: Sequence[float], color: Color) -> None:
    x0, y0, x1, y1 = box
    for inset in range(3):
        draw_dashed(draw, (x0 + inset, y0 + inset, x1 - inset, y1 - inset), color)


def _color(level: int) -> Color:
    return _LEVEL_COLORS[level % len(_LEVEL_COLORS)]
