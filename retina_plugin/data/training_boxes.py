"""Computes the boxes of training images as Detectron2's mapper makes them, without reading an image.

The augmentations are the mapper's own. They see an image of the right size without pixels. A mapper that a project's
trainer builds is not asked.
"""

import functools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform, VFlipTransform

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.rng import seeded
from retina_plugin.core.text import describe_error
from retina_plugin.data.reading import file_name_of


def build_mapper_quietly(cfg: CfgNode) -> DatasetMapper:
    """Build Detectron2's training mapper without its line in the log, which a training has anyway."""
    logger = logging.getLogger("detectron2.data.dataset_mapper")
    logger.addFilter(_nothing)
    try:
        return DatasetMapper(cfg, True)
    finally:
        logger.removeFilter(_nothing)


def transform_size(augmentations: T.Augmentation, size: tuple[int, int]) -> tuple[T.TransformList, tuple[int, int]]:
    """Draw the transforms of an image of a height and width; returns them, and height and width afterwards."""
    blank = _BlankInput(_blank(size))
    transforms = augmentations(blank)
    return transforms, blank.image.shape[:2]


def map_boxes(cfg: CfgNode, images: Iterable[dict[str, Any]], seed: int = 0) -> Iterator[Instances]:
    """Compute the boxes of each image as a training example would have them. Random states stay as they are.

    Args:
        cfg: the configuration, for Detectron2's ``DatasetMapper``.
        images: dataset dicts.
        seed: of the augmentations, together with the place of an image.

    Yields:
        The image's ``gt_boxes`` and ``gt_classes``, and ``gt_areas``, float32 (G,): of the boxes in the image file, in
        pixels, as COCO's sizes small, medium and large are. ``image_size`` is height and width in training.

    Raises:
        ConfigError: annotations that the mapper cannot use.
    """
    augmentations = build_mapper_quietly(cfg).augmentations
    for number, image in enumerate(images):
        try:
            with seeded(seed, number):
                transforms, size = transform_size(augmentations, size_of(image, cfg.INPUT.FORMAT))
            yield _instances(image, transforms, size)
        except (AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            name = file_name_of(image) or f"image {number}"
            raise ConfigError([
                f"the annotations of {name} cannot be used: {describe_error(error)}. "
                "`python -m retina_plugin check-data NAME` says what is wrong in the set"
            ]) from error  # fmt: skip


def spread(images: Sequence[Any], most: int) -> list[int]:
    """Return the indices of at most so many images, evenly over all of them; 0 for all."""
    number = len(images)
    return list(range(number)) if not 0 < most < number else np.linspace(0, number - 1, most).astype(int).tolist()


def stack(mapped: Sequence[Instances]) -> tuple[np.ndarray, np.ndarray]:
    """Stack the boxes of images, float32 (G, 4), and height and width of the image of each, int64 (G, 2)."""
    boxes = [instances.gt_boxes.tensor.numpy() for instances in mapped]
    sizes = np.array([instances.image_size for instances in mapped], dtype=np.int64).reshape(-1, 2)
    return np.concatenate(boxes or [np.zeros((0, 4), dtype=np.float32)]), sizes.repeat([len(b) for b in boxes], axis=0)


def _instances(image: dict[str, Any], transforms: T.TransformList, size: tuple[int, int]) -> Instances:
    """As ``DatasetMapper`` makes them, all boxes of an image at once: one by one takes minutes for a large data set."""
    used = [a for a in image.get("annotations", ()) if a.get("iscrowd", 0) == 0]
    boxes, areas = np.zeros((len(used), 4), dtype=np.float32), np.zeros(len(used), dtype=np.float32)
    for rows, given, mode in _same_kinds(used):
        sides = BoxMode.convert(given, mode, BoxMode.XYWH_ABS)[:, 2:]
        areas[rows] = sides.prod(dim=1).numpy()
        corners = BoxMode.convert(given, mode, BoxMode.XYXY_ABS).numpy()
        # A list of integers stays one in the mapper, which thus resizes in integers; the rest is float64 there.
        corners = corners if given.dtype == torch.int64 else corners.astype(np.float64)
        boxes[rows] = np.minimum(transforms.apply_box(corners).clip(min=0), [*size, *size][::-1])
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes))
    instances.gt_classes = torch.tensor([a["category_id"] for a in used], dtype=torch.int64)
    instances.gt_areas = torch.from_numpy(areas)
    return detection_utils.filter_empty_instances(instances)


def _same_kinds(annotations: Sequence[dict[str, Any]]) -> Iterator[tuple[list[int], torch.Tensor, BoxMode]]:
    """The boxes (number, 4) of each type and mode, with their places."""
    kinds: dict[tuple[torch.dtype, BoxMode], list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for place, annotation in enumerate(annotations):
        box = torch.as_tensor(annotation["bbox"])
        if box.shape != (4,):
            raise ValueError(f"a bbox is {annotation['bbox']}, not four numbers")
        kinds[box.dtype, BoxMode(annotation["bbox_mode"])].append((place, box))
    for (_, mode), placed in kinds.items():
        rows, boxes = zip(*placed)
        yield list(rows), torch.stack(boxes), mode


def size_of(image: dict[str, Any], image_format: str) -> tuple[int, int]:
    """Return height and width of an image, of its file if the dataset dict lacks them."""
    if {"height", "width"} <= image.keys():
        return int(image["height"]), int(image["width"])
    height, width = detection_utils.read_image(image["file_name"], image_format).shape[:2]
    return height, width


class _BlankInput(T.AugInput):
    """An image that all transforms leave blank, so that only its size has to be known."""

    image: np.ndarray

    def transform(self, tfm: Transform) -> None:
        for single in tfm.transforms if isinstance(tfm, T.TransformList) else [tfm]:
            self.image = _transformed(single, self.image)


@functools.singledispatch
def _transformed(transform: Transform, blank: np.ndarray) -> np.ndarray:
    return transform.apply_image(np.ascontiguousarray(blank))


@_transformed.register(T.ResizeTransform)
def _(transform: Any, blank: np.ndarray) -> np.ndarray:
    return _blank((transform.new_h, transform.new_w))


@_transformed.register(CropTransform)
def _(transform: Any, blank: np.ndarray) -> np.ndarray:
    return _blank((transform.h, transform.w))


@_transformed.register(HFlipTransform)
@_transformed.register(VFlipTransform)
@_transformed.register(NoOpTransform)
def _(transform: Any, blank: np.ndarray) -> np.ndarray:
    return blank


def _blank(size: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(0), (*size, 3))  # of one byte


def _nothing(record: logging.LogRecord) -> bool:
    return False
