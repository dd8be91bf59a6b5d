"""Detects objects in images of any size, tile by tile.

Objects of one image are found in overlapping tiles (:func:`retina_plugin.core.tiles.make_tiles`), and merged by one
rule (:func:`.merge.merge_tiles`). Only ``TEST.TILE.BATCH`` tiles are in the model at a time, and the pixels of an image
are read window by window: memory does not grow with the image, as far as its file can be read so.
"""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Instances
from torch import nn

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.tiles import Tile, Windows, make_tiles
from retina_plugin.modeling.inference.merge import merge_tiles


class TiledInference(nn.Module):
    """Wraps a detector for images that it cannot take whole, as ``GeneralizedRCNNWithTTA`` wraps one for TTA.

    Tiles are resized as ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST`` resize an image. An image that one tile
    covers has the detections that the model itself finds.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        tile_size: int,
        overlap: int,
        batch_size: int,
        augmentations: list[T.Augmentation],
        nms_thresh: float,
        max_detections_per_image: int,
    ) -> None:
        """
        Args:
            model: a detector of boxes with the input and output of Detectron2's.
            tile_size: side of a tile, in pixels of the image.
            overlap: pixels that neighboring tiles share at least.
            batch_size: tiles that are in the model at a time.
            augmentations: of a tile, before the model.
            nms_thresh, max_detections_per_image: see :func:`.merge.merge_tiles`.
        """
        super().__init__()
        self.model = model
        self.tile_size = tile_size
        self.overlap = overlap
        self.batch_size = batch_size
        self.augmentations = T.AugmentationList(augmentations)
        self.nms_thresh = nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.train(model.training)  # which Detectron2's inference_context restores

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        return {
            "model": model,
            "tile_size": cfg.TEST.TILE.SIZE,
            "overlap": cfg.TEST.TILE.OVERLAP,
            "batch_size": cfg.TEST.TILE.BATCH,
            "augmentations": build_augmentation(cfg, is_train=False),
            "nms_thresh": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: dicts of N images with ``windows``, a :class:`Windows`. It is taken out of the dict, since
                evaluators keep some; the first tile, as the model sees it, takes its place as ``image``.

        Returns:
            N dicts with ``instances``, as of the model.

        Raises:
            ConfigError: an image without ``windows``.
            FileError: an image cannot be read.
        """
        results = []
        for image in batched_inputs:
            if "windows" not in image:
                raise ConfigError([
                    f"TEST.TILE.SIZE is {self.tile_size}, but the test loader gives images that are read: let "
                    "build_test_loader be that of RetinaTrainer, or set it to 0"
                ])  # fmt: skip
            windows = image.pop("windows")
            image["image"] = self._input(windows, self.tiles(windows)[0])["image"]
            results.append({"instances": self.detect(windows)})
        return results

    @torch.no_grad()
    def detect(self, windows: Windows) -> Instances:
        """Detect the objects of an image.

        Args:
            windows: the image, with the channels of ``INPUT.FORMAT``.

        Returns:
            The fields of the model's detections; ``pred_boxes`` are XYXY in pixels of the image, ``scores`` descend.
        """
        found: list[tuple[Tile, Instances]] = []
        tiles = self.tiles(windows)
        for first in range(0, len(tiles), self.batch_size):
            some = tiles[first : first + self.batch_size]
            outputs = self.model([self._input(windows, tile) for tile in some])
            found += zip(some, (output["instances"] for output in outputs))
        return merge_tiles(
            found,
            windows.shape,
            overlap=self.overlap,
            nms_thresh=self.nms_thresh,
            max_detections_per_image=self.max_detections_per_image,
        )

    def tiles(self, windows: Windows) -> list[Tile]:
        """Return the tiles of an image."""
        return make_tiles(*windows.shape, self.tile_size, self.overlap)

    def _input(self, windows: Windows, tile: Tile) -> dict[str, Any]:
        """What Detectron2's ``DatasetMapper`` makes of an image, for a tile."""
        augmented = T.AugInput(windows.read(*tile.rectangle))
        self.augmentations(augmented)
        pixels = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": pixels, "height": tile.y1 - tile.y0, "width": tile.x1 - tile.x0}
