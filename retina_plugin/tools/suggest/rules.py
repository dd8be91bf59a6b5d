"""Rules that turn numbers of a data set into a configuration. Each is a starting point, with the reason beside it."""

import math
from typing import NamedTuple

import numpy as np

# The side of a small object in the training image: three cells of P3, the finest level.
_SMALL_OBJECT = 24.0
_SMALL_QUANTILE = 0.1
_SHORTEST, _LONGEST = 320, 800  # short sides; the paper's best is 800, where an image takes 6 times the time of 320
_MAX_ENLARGED = 2.0  # interpolated pixels add no detail
_LONG_TO_SHORT = 1333 / 800  # of MAX_SIZE_TRAIN and MIN_SIZE_TRAIN, as in all of Detectron2's RetinaNets
_TILED_BELOW = 12.0  # pixels that a small object would have in a whole image
_COCO_IMAGES, _COCO_EPOCHS = 118_287, 12.0  # of the model zoo's 1x schedule
_MAX_EPOCHS = 100.0
# Of a training step of R-50-FPN in fp32 (README, "Speed and memory"), beside 2 GB for weights, momentum and workspace.
_GIB_PER_MEGAPIXEL, _GIB_ALWAYS = 1.1, 2.0
_CPU_BATCH = 4
_DETECTIONS = 100


class Objects(NamedTuple):
    """The objects of a data set, in pixels of the image files. G objects."""

    side: np.ndarray  # float (G,), square root of the area of the box
    longer: np.ndarray  # float (G,), the longer side of the box
    short_edge: np.ndarray  # float (G,), short side of the image

    @property
    def small(self) -> float:
        """The share of an image's short side that a tenth of the objects is smaller than."""
        return float(np.quantile(self.side / self.short_edge, _SMALL_QUANTILE))


def short_edge(objects: Objects, images_short_edge: float) -> int:
    """Return the short side that images are resized to: small objects get ``_SMALL_OBJECT`` pixels, within limits.

    Args:
        images_short_edge: the median of the images' short sides.
    """
    wanted = min(_SMALL_OBJECT / objects.small, _MAX_ENLARGED * images_short_edge)
    return int(np.clip(32 * math.ceil(wanted / 32), _SHORTEST, _LONGEST))


def train_edges(largest: int) -> list[int]:
    """Return short sides from 0.8 of the largest to it, as the base configuration's 640 to 800."""
    return sorted({16 * round(largest * share / 16) for share in np.linspace(0.8, 1, 6)})


def max_size(edge: int) -> int:
    """Return the longest side of a resized image."""
    return round(edge * _LONG_TO_SHORT)


class Tiles(NamedTuple):
    """Tiles of an image file, in its pixels, and the side that they are resized to."""

    size: int
    overlap: int
    edge: int


def tiles(objects: Objects, images_short_edge: float) -> Tiles | None:
    """Return tiles for a data set whose small objects would vanish in a resized image; None if they do not.

    A tile is enlarged up to twice, so that a small object has ``_SMALL_OBJECT`` pixels; the overlap holds 19 of 20
    objects whole in some tile.
    """
    if images_short_edge <= _LONGEST or objects.small * _LONGEST >= _TILED_BELOW:
        return None
    pixels = float(np.quantile(objects.side, _SMALL_QUANTILE))
    enlarged = float(np.clip(_SMALL_OBJECT / pixels, 1, _MAX_ENLARGED))
    size = 32 * math.ceil(_LONGEST / enlarged / 32)
    overlap = 32 * math.ceil(float(np.quantile(objects.longer, 0.95)) / 32)
    return Tiles(size, min(overlap, size // 2), _LONGEST)


def epochs(num_images: int) -> float:
    """Return passes over a data set: COCO's 12, times the square root of how many times fewer images there are.

    Between few steps and many repetitions; Detectron2's own schedules for smaller sets follow it within a factor of
    two: 64 epochs for Cityscapes (2,975 images; the rule says 76), 17 for Pascal VOC (16,551; 32).
    """
    return min(_COCO_EPOCHS * math.sqrt(_COCO_IMAGES / num_images), _MAX_EPOCHS)


def iterations(num_images: int, batch: int) -> int:
    """Return steps for :func:`epochs`, in two digits."""
    return max(10, int(float(f"{epochs(num_images) * num_images / batch:.2g}")))


def batch_size(most: int, num_images: int, pixels: int, gpu_gib: float | None) -> int:
    """Return images of a step: a power of two that fits the memory of one GPU, at most that of the base configuration.

    Args:
        most: images of a step of the base configuration.
        num_images: of the data set.
        pixels: of a training image.
        gpu_gib: memory of the GPU in GiB; None without one.
    """
    fitting = _CPU_BATCH if gpu_gib is None else (gpu_gib - _GIB_ALWAYS) / (_GIB_PER_MEGAPIXEL * pixels / 1e6)
    return min(most, 2 ** max(0, math.floor(math.log2(max(1.0, min(fitting, num_images))))))


def detections_per_image(densest: int) -> int:
    """Return detections of an image: half as many again as the densest has objects, for false ones; at least COCO's."""
    return max(_DETECTIONS, 50 * math.ceil(1.5 * densest / 50))
