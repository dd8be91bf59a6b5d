"""Proposes anchors that cover the boxes of a data set, and says what they gain on images that were not used."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate
from tqdm import tqdm

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import atomic_write_text
from retina_plugin.data.training_boxes import map_boxes, spread, stack
from retina_plugin.modeling.anchor_coverage import AnchorCoverage
from retina_plugin.tools.anchors.output import new_files
from retina_plugin.tools.anchors.search import AnchorSearch, Candidate
from retina_plugin.tools.anchors.training_set import read_training_images

MAX_IMAGES = 5000

_HELD_OUT = 0.25  # of the images
_SEARCH_BOXES = 2000
_TEST_BOXES = 50_000


class Quality(NamedTuple):
    """How anchors cover boxes."""

    mean_iou: float  # with the best anchor
    reached: tuple[float, ...]  # share of boxes with a best IoU of at least each of MODEL.RETINANET.IOU_THRESHOLDS

    @property
    def score(self) -> float:
        """What the search maximizes, see :mod:`.search`."""
        return self.mean_iou + sum(self.reached)


@dataclass
class FittedAnchors:
    """Anchors that were fitted to boxes, and how they and the configured ones cover the boxes of other images."""

    sizes: list[list[float]]  # of each level, in pixels
    ratios: list[float]  # height / width
    before: Quality
    after: Quality
    fitted_images: int
    test_images: int  # 0: too few images to hold some out, and the qualities are those of the fitted ones
    test_boxes: int

    @property
    def is_better(self) -> bool:
        """Whether the fitted anchors score higher than the configured ones."""
        return self.after.score > self.before.score

    def set(self, cfg: CfgNode) -> None:
        """Set the anchors of a configuration (in place)."""
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(level) for level in self.sizes]
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(self.ratios)]

    def yaml(self) -> str:
        """Return the keys as YAML."""
        lines = ["MODEL:", "  ANCHOR_GENERATOR:", "    SIZES:"]
        lines += [f"      - {level}" for level in self.sizes]
        return "\n".join([*lines, f"    ASPECT_RATIOS: [{self.ratios}]"])


def fit_anchors(
    cfg: CfgNode,
    images: Sequence[dict[str, Any]],
    *,
    num_scales: int = 0,
    num_ratios: int = 0,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
) -> FittedAnchors:
    """Fit anchors to the boxes of training images at training size; see :mod:`.search` for the method.

    A quarter of the images is held out, drawn by ``seed``: the qualities are those of their boxes, by the anchors of
    the model. Images that overlap, such as tiles of one photograph, are not independent: the gain is optimistic then.

    Args:
        cfg: of a RetinaNet with the anchors to compare with.
        images: dataset dicts.
        num_scales, num_ratios: sizes of a level, and ratios; 0 for as many as are configured.
        max_images: images to look at, spread evenly over all; 0 for all.
        seed: of the images that are held out, of the boxes that are used if there are many, and of the augmentations.

    Raises:
        ConfigError: no image has a box.
    """
    generator, rng = cfg.MODEL.ANCHOR_GENERATOR, np.random.default_rng(seed)
    num_scales, num_ratios = num_scales or len(generator.SIZES[0]), num_ratios or len(generator.ASPECT_RATIOS[0])
    some = [images[i] for i in spread(images, max_images)]
    mapped = [m for m in tqdm(map_boxes(cfg, some, seed), "boxes", len(some), leave=False, disable=None) if len(m)]
    if not mapped:
        raise ConfigError([f"none of {len(some)} images of {', '.join(cfg.DATASETS.TRAIN)} has a box to train on"])
    order = rng.permutation(len(mapped))
    held_out = round(_HELD_OUT * len(mapped))
    fitted, test = ([mapped[i] for i in part] for part in (order[held_out:], order[:held_out] if held_out else order))

    coverage = AnchorCoverage(cfg)
    boxes, sizes = _some(*stack(fitted), _SEARCH_BOXES, rng)
    thresholds = cfg.MODEL.RETINANET.IOU_THRESHOLDS
    search = AnchorSearch(boxes, coverage.nearest_offsets(boxes, sizes), coverage.strides, thresholds)
    best = search.search(num_scales, num_ratios, _configured(cfg, num_scales, num_ratios))

    ratios = [round(ratio, 2) for ratio in best.ratios]
    factors = [stride / coverage.strides[0] for stride in coverage.strides]
    level_sizes = [[round(round(size, 1) * factor, 2) for size in best.sizes] for factor in factors]
    test_boxes, test_sizes = _some(*stack(test), _TEST_BOXES, rng)
    before = _quality(coverage, test_boxes, test_sizes, thresholds)
    result = FittedAnchors(level_sizes, ratios, before, before, len(fitted), held_out, len(test_boxes))
    trial = cfg.clone()
    trial.defrost()
    result.set(trial)
    result.after = _quality(AnchorCoverage(trial), test_boxes, test_sizes, thresholds)
    return result


def print_fitted_anchors(
    cfg: CfgNode,
    *,
    num_scales: int = 0,
    num_ratios: int = 0,
    output_dir: Path | None = None,
    overwrite: bool = False,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
) -> FittedAnchors:
    """Fit anchors to ``DATASETS.TRAIN``, and print and write the YAML to paste and the gain.

    Args:
        cfg: of :func:`~retina_plugin.tools.anchors.training_set.read_training_config`.
        output_dir: gets ``anchors.yaml`` and ``fit.json``.
        overwrite: whether they may replace files.
        num_scales, num_ratios, max_images, seed: see :func:`fit_anchors`.

    Raises:
        ConfigError: the data set cannot be used, or has no boxes.
        FileError: a file to write exists.
    """
    files = new_files(output_dir, ["anchors.yaml", "fit.json"], overwrite)
    images = read_training_images(cfg)
    options = {"num_scales": num_scales, "num_ratios": num_ratios, "max_images": max_images, "seed": seed}
    fitted = fit_anchors(cfg, images, **options)
    print(f"{_gain(cfg, fitted)}\n")
    if not fitted.is_better:
        print("The configured anchors cover these boxes as well: keep them. The best that was found is\n")
    print(fitted.yaml())
    if files:
        atomic_write_text(files[0], fitted.yaml() + "\n")
        report = {**vars(fitted), "before": fitted.before._asdict(), "after": fitted.after._asdict(), "seed": seed}
        atomic_write_text(files[1], json.dumps(report, indent=1))
        print("\n".join(["", *(str(path.resolve()) for path in files)]))
    return fitted


def _gain(cfg: CfgNode, fitted: FittedAnchors) -> str:
    thresholds = cfg.MODEL.RETINANET.IOU_THRESHOLDS
    named = (("configured", fitted.before), ("fitted", fitted.after))
    rows = [(name, quality.mean_iou, *quality.reached) for name, quality in named]
    headers = ["anchors", "mean best IoU", *(f"best IoU >= {threshold:g}" for threshold in thresholds)]
    of = (
        f"of {fitted.test_images} images that were held out"
        if fitted.test_images
        else "of the images that were fitted: too few to hold some out"
    )
    head = f"Fitted to {fitted.fitted_images} images; coverage of {fitted.test_boxes} boxes {of}:"
    return f"{head}\n\n{tabulate(rows, headers, floatfmt=('', '.3f', *['.1%'] * len(thresholds)))}"


def _configured(cfg: CfgNode, num_scales: int, num_ratios: int) -> list[Candidate]:
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES[0], cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]
    fits = (len(sizes), len(ratios)) == (num_scales, num_ratios)
    return [Candidate(tuple(map(float, sizes)), tuple(map(float, ratios)))] if fits else []


def _some(boxes: np.ndarray, sizes: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if len(boxes) <= most:
        return boxes, sizes
    rows = np.sort(rng.choice(len(boxes), most, replace=False))
    return boxes[rows], sizes[rows]


def _quality(coverage: AnchorCoverage, boxes: np.ndarray, sizes: np.ndarray, thresholds: Sequence[float]) -> Quality:
    iou, _ = coverage.best(boxes, sizes)
    return Quality(float(iou.mean()), tuple(float((iou >= threshold).mean()) for threshold in thresholds))
