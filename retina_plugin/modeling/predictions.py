"""What a detector predicts for every anchor, before scores are thresholded and boxes decoded."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from detectron2.structures import Boxes
from torch import Tensor


class RawPredictions(NamedTuple):
    """The predictions of a batch by level and anchor.

    N images, L levels, A anchors a cell, K classes; level l has Hl x Wl cells.

    Attributes:
        anchors: L ``Boxes`` of Hl * Wl * A anchors each, in the order (row, column, anchor).
        logits: L float tensors (N, Hl, Wl, A, K), views of the head's output.
        deltas: L float tensors (N, Hl, Wl, A, 4), the codes of the box coder, views of the head's output.
        image_sizes: N pairs (height, width) of the unpadded images, in pixels.
        extra: what the head returns besides, as :attr:`.head.HeadOutput.extra`.
    """

    anchors: list[Boxes]
    logits: list[Tensor]
    deltas: list[Tensor]
    image_sizes: list[tuple[int, int]]
    extra: Mapping[str, Any] = MappingProxyType({})
