"""Trains on, and computes losses of, tiles of large images.

A tile is a dataset dict of its own: ``width``, ``height`` and ``annotations`` are those of the tile. ``tile`` is its
rectangle of the file, and ``file_size`` the width and height of the file's image.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.detection_utils import (
    annotations_to_instances,
    check_image_size,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import describe_error
from retina_plugin.core.tiles import Windows, make_tiles
from retina_plugin.data.windows import open_windows

Record = dict[str, Any]

MIN_VISIBLE = 0.5  # of a box's area, to count as an object
# Masks, key points and proposals are of the whole image. RetinaNet reads none of them.
_OF_IMAGE = (
    *("sem_seg_file_name", "pan_seg_file_name", "segments_info"),
    *("proposal_boxes", "proposal_objectness_logits", "proposal_bbox_mode"),
)
_OF_OBJECT = ("segmentation", "keypoints", "area")


def cut_boxes(boxes: np.ndarray, rectangle: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut boxes of an image for a part of it. A box less than ``MIN_VISIBLE`` of which is inside is no object there.

    Args:
        boxes: (G, 4), XYXY in pixels of the image.
        rectangle: XYXY of the part.

    Returns:
        index: (n,) of the boxes that lie in the part at least in part.
        boxes: (n, 4), clipped, XYXY in pixels of the part.
        share: (n,) of the area of each that is inside.
    """
    x0, y0, x1, y1 = rectangle
    clipped = np.clip(boxes - [x0, y0, x0, y0], 0, [x1 - x0, y1 - y0] * 2)
    area, whole = ((b[:, 2:] - b[:, :2]).clip(0).prod(1) for b in (clipped, boxes))
    index = (area > 0).nonzero()[0]
    return index, clipped[index], area[index] / whole[index]


def tile_records(records: Iterable[Record], size: int, overlap: int) -> Iterator[Record]:
    """Replace the dataset dict of each image that is larger than a tile by those of its tiles.

    Boxes are cut as :func:`cut_boxes` says: what is no object becomes a crowd, which training leaves out. Masks and key
    points are left out. A warning counts the objects that are so in no tile.

    Args:
        records: dataset dicts of images, with ``width`` and ``height``.
        size, overlap: see :func:`retina_plugin.core.tiles.make_tiles`.

    Raises:
        ConfigError: an image has no size, or boxes that are none.
    """
    lost = 0
    for record in records:
        name = record.get("file_name", "an image")
        try:
            width, height = int(record["width"]), int(record["height"])
            tiles = make_tiles(height, width, size, overlap)
            objects = record.get("annotations", ())
            boxes = [BoxMode.convert(a["bbox"], BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS) for a in objects]
            inside = np.clip(np.array(boxes, dtype=float).reshape(-1, 4), 0, [width, height] * 2)
        except (AssertionError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            raise ConfigError([
                f"{name} cannot be cut into tiles: {describe_error(error)}. Its dict needs 'width', 'height', and for "
                "each of 'annotations' a 'bbox' and a 'bbox_mode'"
            ]) from error  # fmt: skip
        if len(tiles) == 1:
            yield record
            continue
        rest = {key: value for key, value in record.items() if key not in _OF_IMAGE}
        largest = np.zeros(len(inside))  # share of each box in a tile
        for tile in tiles:
            rectangle = tile.rectangle
            size_of_tile = {"width": tile.x1 - tile.x0, "height": tile.y1 - tile.y0}
            part: Record = {**rest, **size_of_tile, "tile": rectangle, "file_size": (width, height)}
            if "annotations" in record:
                index, cut, shares = cut_boxes(inside, rectangle)
                part["annotations"] = [_cut(objects[i], box, share) for i, box, share in zip(index, cut, shares)]
                largest[index] = np.maximum(largest[index], shares)
            yield part
        crowds = np.array([bool(annotation.get("iscrowd", 0)) for annotation in objects], dtype=bool)
        lost += int(((largest > 0) & (largest < MIN_VISIBLE) & ~crowds).sum())
    if lost:
        logging.getLogger(__name__).warning(
            "%d objects are less than half in any tile, and are left out: choose a larger TILE.SIZE or TILE.OVERLAP.",
            lost,
        )


def _cut(annotation: Record, box: np.ndarray, share: float) -> Record:
    kept = {key: value for key, value in annotation.items() if key not in _OF_OBJECT}
    crowd = 1 if share < MIN_VISIBLE else annotation.get("iscrowd", 0)
    return {**kept, "bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": crowd}


def build_tiled_dataset(cfg: CfgNode) -> list[Record]:
    """Return the dataset dicts of ``DATASETS.TRAIN``, in tiles.

    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` drops tiles without objects, as it drops images.

    Raises:
        ConfigError: see :func:`tile_records`; or a set is not a list of dicts, or no tile has an object.
    """
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    images = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=filter_empty)
    if isinstance(images, Dataset):
        raise ConfigError([
            f"INPUT.TILE.SIZE is {cfg.INPUT.TILE.SIZE}, but DATASETS.TRAIN ({', '.join(cfg.DATASETS.TRAIN)}) is no "
            "list of dicts, which alone can be cut into tiles. Register it as one, or set INPUT.TILE.SIZE to 0"
        ])  # fmt: skip
    tiles = list(tile_records(images, cfg.INPUT.TILE.SIZE, cfg.INPUT.TILE.OVERLAP))
    if filter_empty and "annotations" in tiles[0]:
        tiles = filter_images_with_only_crowd_annotations(tiles)
    if not tiles:
        raise ConfigError([
            f"INPUT.TILE.SIZE is {cfg.INPUT.TILE.SIZE}, but no object of DATASETS.TRAIN is at least half in a tile: "
            "set it to several times the size of the objects"
        ])  # fmt: skip
    return tiles


class TileMapper:
    """Makes examples of tiles as Detectron2's ``DatasetMapper`` makes them of images, with its augmentations.

    The last image stays open. Tiles of one image that follow each other, as in a validation or in a training on a
    single photograph, decode it once. A training on N photographs finds the last one open once in N examples, and
    decodes another image for each of the rest.
    """

    def __init__(self, mapper: Callable[[Record], Any]) -> None:
        """
        Args:
            mapper: makes examples of the images that are not cut; its augmentations and format are those of tiles.

        Raises:
            ConfigError: it is another mapper, which would not know tiles.
        """
        if type(mapper) is not DatasetMapper:
            raise ConfigError([
                f"tiles are read with the augmentations of a DatasetMapper, not by a {type(mapper).__name__}: set "
                "INPUT.TILE.SIZE to 0, or give its augmentations to a DatasetMapper"
            ])  # fmt: skip
        self._mapper: DatasetMapper = mapper
        self._last: tuple[str, Windows] | None = None

    def __call__(self, record: Record) -> Record:
        if "tile" not in record:
            return self._mapper(record)
        augmented = T.AugInput(self._open(record).read(*record["tile"]))
        transforms = self._mapper.augmentations(augmented)
        size = augmented.image.shape[:2]
        example = {**record, "image": torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))}
        if "annotations" in example:
            objects = [dict(a) for a in example.pop("annotations") if a.get("iscrowd", 0) == 0]
            boxes = [transform_instance_annotations(a, transforms, size) for a in objects]
            example["instances"] = filter_empty_instances(annotations_to_instances(boxes, size))
        return example

    def _open(self, record: Record) -> Windows:
        name = record["file_name"]
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next one takes memory
            self._last = name, open_windows(name, self._mapper.image_format)
        windows = self._last[1]
        width, height = record["file_size"]
        check_image_size({"file_name": name, "width": width, "height": height}, windows)
        return windows


def build_train_mapper(cfg: CfgNode, mapper: Callable[[Record], Any] | None = None) -> Callable[[Record], Any]:
    """Return what makes training examples of dataset dicts of images and, with ``INPUT.TILE.SIZE``, of tiles.

    Args:
        mapper: of images; None for Detectron2's.

    Raises:
        ConfigError: see :class:`TileMapper`.
    """
    mapper = mapper or DatasetMapper(cfg, True)
    return TileMapper(mapper) if cfg.INPUT.TILE.SIZE else mapper


def tiled_arguments(cfg: CfgNode) -> dict[str, Sequence[Record]]:
    """Return the argument of ``build_detection_train_loader`` that replaces images by tiles, if they are configured."""
    return {"dataset": build_tiled_dataset(cfg)} if cfg.INPUT.TILE.SIZE else {}
