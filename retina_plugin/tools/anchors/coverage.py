"""Measures how the anchors of a configuration cover the boxes of its training images.

G boxes of all images, L levels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tqdm import tqdm

from retina_plugin.core.errors import ConfigError
from retina_plugin.data.reading import file_name_of
from retina_plugin.data.training_boxes import map_boxes, spread, stack
from retina_plugin.modeling.anchor_coverage import AnchorCoverage

MAX_IMAGES = 2000

COCO_SIZES = {"small (< 32 x 32)": 32.0**2, "medium": 96.0**2, "large (> 96 x 96)": np.inf}
_RATIOS = {"< 1/3": 1 / 3, "1/3 to 2/3": 2 / 3, "2/3 to 3/2": 3 / 2, "3/2 to 3": 3.0, "> 3": np.inf}


@dataclass
class Row:
    """A group of boxes: its number, the share without an anchor of the positive IoU, and the assigner's anchors."""

    group: str
    name: str
    boxes: int
    mean_iou: float
    missed: float  # share with a best IoU below the positive threshold
    unmatched: float | None  # share without any positive anchor; None if the assigner needs predictions
    positives: float | None  # anchors a box


@dataclass
class Coverage:
    """The boxes of training images, at training size, and their anchors."""

    levels: list[str]
    threshold: float  # the IoU from which on an anchor is positive
    class_names: list[str]
    file_names: list[str]  # of the images
    image: np.ndarray  # int64 (G,), index of the file name
    label: np.ndarray  # int64 (G,)
    area: np.ndarray  # float32 (G,), in pixels of the image file
    boxes: np.ndarray  # float32 (G, 4), XYXY in pixels at training size
    iou: np.ndarray  # float32 (G,), with the best anchor
    level: np.ndarray  # int64 (G,), of that anchor
    positives: np.ndarray | None  # int64 (G, L), anchors that the assigner gives to the box

    @property
    def missed(self) -> np.ndarray:
        """Whether a box has no anchor that is positive without low-quality matches, bool (G,)."""
        return self.iou < self.threshold

    def rows(self) -> Iterator[Row]:
        """Yield the row of all boxes, then those by COCO's sizes, by level, ratio and class; none without boxes."""
        yield self._row("all", "all boxes", np.ones(len(self.iou), dtype=bool))
        width, height = (self.boxes[:, 2:] - self.boxes[:, :2]).T
        yield from self._binned("size", self.area, COCO_SIZES)
        yield from self._named("level", self.level, self.levels)
        yield from self._binned("height / width", height / width, _RATIOS)
        yield from self._named("class", self.label, self.class_names)

    def _binned(self, group: str, values: np.ndarray, bins: dict[str, float]) -> Iterator[Row]:
        yield from self._named(group, np.searchsorted(list(bins.values()), values, side="right"), list(bins))

    def _named(self, group: str, index: np.ndarray, names: Sequence[str]) -> Iterator[Row]:
        for number, name in enumerate(names):
            if (index == number).any():
                yield self._row(group, name, index == number)

    def _row(self, group: str, name: str, which: np.ndarray) -> Row:
        numbers = None if self.positives is None else self.positives[which].sum(axis=1)
        return Row(
            group,
            name,
            int(which.sum()),
            float(self.iou[which].mean()),
            float(self.missed[which].mean()),
            None if numbers is None else float((numbers == 0).mean()),
            None if numbers is None else float(numbers.mean()),
        )


def measure_coverage(
    cfg: CfgNode,
    images: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    *,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
) -> Coverage:
    """Compare the boxes of training images with the anchors of the model, and assign them by its assigner.

    Args:
        cfg: of a RetinaNet.
        images: dataset dicts.
        class_names: of their labels.
        max_images: images to look at, spread evenly over all; 0 for all.
        seed: of the augmentations.

    Raises:
        ConfigError: no image has a box.
    """
    coverage = AnchorCoverage(cfg)
    some = [images[i] for i in spread(images, max_images)]
    mapped, positives = [], []
    for instances in tqdm(map_boxes(cfg, some, seed), "boxes", len(some), leave=False, disable=None):
        mapped.append(instances)
        if coverage.assigns_before_forward:
            positives.append(count_positives(coverage, instances))
    image = np.repeat(np.arange(len(mapped)), [len(instances) for instances in mapped])
    if len(image) == 0:
        raise ConfigError([f"none of {len(some)} images of {', '.join(cfg.DATASETS.TRAIN)} has a box to train on"])
    boxes, sizes = stack(mapped)
    iou, level = coverage.best(boxes, sizes)
    return Coverage(
        levels=coverage.levels,
        threshold=coverage.threshold,
        class_names=list(class_names),
        file_names=[file_name_of(record) for record in some],
        image=image,
        label=np.concatenate([instances.gt_classes.numpy() for instances in mapped]),
        area=np.concatenate([instances.gt_areas.numpy() for instances in mapped]),
        boxes=boxes,
        iou=iou,
        level=level,
        positives=np.concatenate(positives) if positives else None,
    )


def count_positives(coverage: AnchorCoverage, instances: Instances) -> np.ndarray:
    """Count the positive anchors of each box on each level, int64 (G, L).

    Anchors know the box that they learn, not its number: those of equal boxes count for the first, as in the assigner.
    """
    anchors, targets = coverage.assign(instances)
    counts = np.zeros((len(instances), len(anchors)), dtype=np.int64)
    if len(instances) == 0:
        return counts
    is_positive = targets.is_positive(coverage.num_classes)[0]
    learned = targets.boxes[0][is_positive]
    ends = np.cumsum([len(level) for level in anchors])
    level = np.searchsorted(ends, is_positive.nonzero().squeeze(1).numpy(), side="right")
    for some in range(0, len(learned), 2**12):
        equal = (learned[some : some + 2**12, None] == instances.gt_boxes.tensor).all(dim=2)
        box = equal.int().argmax(dim=1).numpy()
        np.add.at(counts, (box, level[some : some + 2**12]), equal.any(dim=1).numpy())
    return counts
