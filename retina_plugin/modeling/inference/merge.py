"""Merges the detections of overlapping tiles.

The rule:

1. A detection counts in the tile whose core has the center of its box. Cores end in the middle of each overlap and
   partition the image. A box outside of its tile's core, but by less than ``TOLERANCE`` of the overlap, is a candidate.
2. Among the detections and candidates with a center where tiles overlap, class-wise NMS removes the doubles; those in
   their core go first, then those with the higher score.
3. The best of the whole image are kept.

An object up to the size of the overlap lies whole in the tile whose core has its center. Another tile that sees a
piece of it has the piece's center outside of its own core, so that pieces of objects do not count, which NMS alone
would keep. Two tiles may locate an object near a border differently. Without candidates, each could leave it to the
other, and without NMS, both could count it. An object larger than the overlap may be cut by every tile, and is then
found in pieces.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from retina_plugin.core.tiles import Tile

# Of the overlap. A piece that is a candidate lacks at most twice as much of either side of its object, an eighth: its
# IoU with the whole object is over 0.76, and NMS with a lower threshold removes it.
TOLERANCE = 1 / 16


def merge_tiles(
    found: Sequence[tuple[Tile, Instances]],
    image_size: tuple[int, int],
    *,
    overlap: int,
    nms_thresh: float,
    max_detections_per_image: int,
) -> Instances:
    """Merge the detections of the tiles of an image. Their order changes nothing.

    Args:
        found: the tiles, each once, with ``pred_boxes`` (XYXY in pixels of the tile), ``scores`` and ``pred_classes``.
        image_size: height and width of the image.
        overlap: pixels that neighboring tiles share at least.
        nms_thresh: IoU above which NMS removes the box that comes later.
        max_detections_per_image: of all tiles and classes together.

    Returns:
        The detections that count, scores descending, boxes in pixels of the image.
    """
    found = sorted(found, key=lambda pair: pair[0])  # equal scores must not depend on the order
    merged = Instances.cat([_in_image(tile, detections, image_size) for tile, detections in found])
    tile_of = torch.repeat_interleave(torch.tensor([len(detections) for _, detections in found]))
    centers = merged.pred_boxes.get_centers().repeat(1, 2)  # x, y, x, y
    cores, exclusive = (
        centers.new_tensor(values)[tile_of.to(centers.device)]
        for values in ([tile.core for tile, _ in found], [tile.exclusive for tile, _ in found])
    )
    in_core = ((centers >= cores)[:, :2] & (centers < cores)[:, 2:]).all(1)
    inside = torch.cat([(centers - cores)[:, :2], (cores - centers)[:, 2:]], dim=1)  # distance from each border
    counts = in_core | (inside > -TOLERANCE * overlap).all(1)
    shared = counts & ((centers < exclusive)[:, :2] | (centers > exclusive)[:, 2:]).any(1)
    counts[shared] = _without_doubles(merged[shared], in_core[shared], nms_thresh)
    merged = merged[counts]
    best = merged.scores.argsort(descending=True, stable=True)
    return merged[best[:max_detections_per_image]]


def _in_image(tile: Tile, detections: Instances, image_size: tuple[int, int]) -> Instances:
    boxes = detections.pred_boxes.tensor
    moved = Boxes(boxes + boxes.new_tensor([tile.x0, tile.y0] * 2))
    return Instances(image_size, **{**detections.get_fields(), "pred_boxes": moved})


def _without_doubles(detections: Instances, in_core: Tensor, nms_thresh: float) -> Tensor:
    """Which of n detections, bool (n,), class-wise NMS keeps."""
    order = detections.scores.argsort(descending=True, stable=True)
    order = order[in_core[order].int().argsort(descending=True, stable=True)]
    ranks = torch.empty_like(detections.scores)
    ranks[order] = -torch.arange(len(order), dtype=ranks.dtype, device=ranks.device)
    keep = torch.zeros_like(in_core)
    # Not batched_nms, which may shift each class by the size of the image, and so round boxes of many classes.
    for label in detections.pred_classes.unique():
        of_class = (detections.pred_classes == label).nonzero().squeeze(1)
        keep[of_class[nms(detections.pred_boxes.tensor[of_class], ranks[of_class], nms_thresh)]] = True
    return keep
