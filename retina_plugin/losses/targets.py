"""What every anchor of a batch is to predict.

N images, L levels, A anchors a cell, R anchors in all, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Targets:
    """The targets of the anchors of a batch, as an assigner returns them.

    Attributes:
        labels: int64 (N, R): 0..K-1 a class, K background, -1 ignored.
        boxes: float (N, R, 4), the ground-truth box of each anchor, XYXY in pixels; meaningful where the label is a
            class.
        scores: float (N, R) in [0, 1], the soft target of the anchor's own class, such as its IoU; meaningful where the
            label is a class. None: 1 everywhere.
    """

    labels: torch.Tensor
    boxes: torch.Tensor
    scores: torch.Tensor | None = None

    def labels_by_level(self, logits: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Views (N, Hl, Wl, A) of the labels for logits (N, Hl, Wl, A, K) of L levels."""
        return _split_by_level(self.labels, logits)

    def scores_by_level(self, logits: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """Views (N, Hl, Wl, A) of the scores for logits (N, Hl, Wl, A, K) of L levels; None without scores."""
        return None if self.scores is None else _split_by_level(self.scores, logits)

    def is_positive(self, num_classes: int) -> torch.Tensor:
        """bool (N, R): whether the label is a class."""
        return (self.labels >= 0) & (self.labels < num_classes)

    def num_positives(self, num_classes: int) -> torch.Tensor:
        """0-dim int64 tensor: the anchors whose label is a class."""
        return self.is_positive(num_classes).sum()


def _split_by_level(values: torch.Tensor, logits: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    shapes = [x.shape[1:4] for x in logits]
    parts = values.split([shape.numel() for shape in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]
