"""The training targets of all anchors of a batch: N images, L levels, A anchors a cell, R anchors in all, K classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Holds the targets of the anchors of a batch, as an assigner returns them.

    Attributes:
        labels: int64 (N, R): 0..K-1 a class, K background, -1 ignored.
        boxes: float (N, R, 4), ground-truth boxes, XYXY in pixels; meaningful where the label is a class.
        scores: float (N, R) in [0, 1], soft targets of the anchors' own classes, such as an IoU; meaningful where the
            label is a class. None: 1 everywhere.
    """

    labels: Tensor
    boxes: Tensor
    scores: Tensor | None = None

    def labels_by_level(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Split the labels into L views (N, Hl, Wl, A), for L logits (N, Hl, Wl, A, K)."""
        return _split_by_level(self.labels, logits)

    def scores_by_level(self, logits: Sequence[Tensor]) -> list[Tensor] | None:
        """Split the scores into L views (N, Hl, Wl, A), for L logits (N, Hl, Wl, A, K); None without scores."""
        return None if self.scores is None else _split_by_level(self.scores, logits)

    def is_positive(self, num_classes: int) -> Tensor:
        """Return a bool (N, R) mask of the anchors whose label is a class."""
        return (self.labels >= 0) & (self.labels < num_classes)

    def num_positives(self, num_classes: int) -> Tensor:
        """Count the anchors whose label is a class, as a 0-dim int64 tensor."""
        return self.is_positive(num_classes).sum()


def _split_by_level(values: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    shapes = [x.shape[1:-1] for x in logits]
    levels = values.split([shape.numel() for shape in shapes], dim=1)
    return [level.unflatten(1, shape) for level, shape in zip(levels, shapes)]
