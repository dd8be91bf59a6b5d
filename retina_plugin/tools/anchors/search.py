"""Searches the sizes and ratios of anchors that cover boxes best, with the strides of the levels fixed.

G boxes, L levels, S scales a level, Q ratios. A candidate is S sizes of the first level and Q ratios; the sizes of the
other levels follow by the strides, so that each level has the sizes of the one before times two, as in RetinaNet. An
anchor of a size s and a ratio r = height / width has the area s^2.

The score of a candidate is the mean best IoU, plus the share of boxes whose best IoU is at least t for each threshold t
(``MODEL.RETINANET.IOU_THRESHOLDS``): a box without a positive anchor costs one, and one whose best anchor is background
costs two. The IoU of a box and an anchor is the one at the position of the box: its center is as far from the nearest
center of anchors as it is in the image. (k-means on widths and heights, the usual way, takes all boxes as centered on
an anchor: small ones are not.)

The score is a function of S + Q numbers with many local maxima. Starts on a grid of sizes are scored, and from the best
of them a pattern search tries each number, and all sizes together, a step up and down, and halves the step when nothing
improves. Numbers and steps are powers of two.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retina_plugin.modeling.assigners.anchor_grid import iou_of_overlaps, overlap

# An anchor has 1 to 8 strides of its level: what is much larger is beyond what a feature sees, what is smaller falls
# between the cells. The paper's have 4 to 6.3.
STRIDES_PER_SIZE = (1.0, 8.0)
_MAX_RATIO = 8.0

_BASES_PER_OCTAVE = 8
_SPANS = (0.5, 1.0, 1.5)  # octaves that the sizes of a level share; 1 is the paper's
_RATIO_SHIFTS = (-0.5, 0.0, 0.5)  # of the quantiles of the boxes' ratios, in powers of two
_STARTS = 8  # that are improved
_FIRST_STEP, _LAST_STEP = 0.25, 1 / 128  # powers of two
_LEAST_GAIN = 1e-6  # of a step: less is rounding


class Candidate(NamedTuple):
    """S sizes of the first level, in pixels, and Q ratios, height / width; both increase."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]


class AnchorSearch:
    """Scores candidates on boxes, and searches the best one. Deterministic: nothing is drawn."""

    def __init__(self, boxes: np.ndarray, offsets: np.ndarray, strides: Sequence[int], thresholds: Sequence[float]):
        """
        Args:
            boxes: float32 (G, 4) at training size, XYXY in pixels; G > 0.
            offsets: float32 (L, G, 2), of ``AnchorCoverage.nearest_offsets``.
            strides: of the L levels.
            thresholds: IoUs that count, see the module.
        """
        sides = torch.from_numpy(boxes[:, 2:] - boxes[:, :2])
        self._half = sides.T[:, None, None] / 2  # (2, 1, 1, G)
        self._area = sides.prod(dim=1)
        self._offsets = torch.from_numpy(offsets).permute(2, 0, 1)[:, :, None]  # (2, L, 1, G)
        self._stride = strides[0]
        self._factors = torch.tensor([stride / strides[0] for stride in strides])
        self._thresholds = thresholds

    def best_iou(self, candidate: Candidate) -> Tensor:
        """Compute the highest IoU (G,) of each box with the nearest anchors of a candidate."""
        root = torch.tensor(candidate.ratios).sqrt()
        shapes = torch.stack([1 / root, root])  # (2, Q), width and height
        sides = (torch.tensor(candidate.sizes)[:, None] * shapes[:, None]).flatten(1)  # (2, S * Q)
        half = (self._factors[:, None] * sides[:, None])[..., None] / 2  # (2, L, S * Q, 1)
        width, height = overlap(-self._half, self._half, self._offsets - half, self._offsets + half)
        return iou_of_overlaps(width, height, self._area, 4 * half.prod(dim=0)).amax(dim=(0, 1))

    def score(self, candidate: Candidate) -> float:
        """Compute the score of a candidate, see the module; between 0 and 1 + the number of thresholds."""
        iou = self.best_iou(candidate)
        return float(iou.mean() + sum((iou >= threshold).float().mean() for threshold in self._thresholds))

    def search(self, num_scales: int, num_ratios: int, first: Sequence[Candidate] = ()) -> Candidate:
        """Search the best candidate.

        Args:
            num_scales, num_ratios: S and Q.
            first: candidates to start from as well, such as the configured anchors.
        """
        starts = [_logarithms(candidate) for candidate in first] + list(self._starts(num_scales, num_ratios))
        scored = sorted((self._score(x, num_scales), x) for x in map(self._bounded, starts, [num_scales] * len(starts)))
        best = max(self._improve(*start, num_scales) for start in scored[-_STARTS:])
        return _candidate(best[1], num_scales)

    def _starts(self, num_scales: int, num_ratios: int) -> Iterator[tuple[float, ...]]:
        half = self._half.squeeze()
        quantiles = (torch.arange(num_ratios) + 0.5) / num_ratios
        ratios = (half.reshape(2, -1)[1] / half.reshape(2, -1)[0]).log2().quantile(quantiles).tolist()
        low, high = np.log2(STRIDES_PER_SIZE)
        bases = np.log2(self._stride) + np.arange(low, high, 1 / _BASES_PER_OCTAVE)
        spans = _SPANS if num_scales > 1 else _SPANS[:1]
        for base, span, shift in itertools.product(bases, spans, _RATIO_SHIFTS):
            sizes = base + span * np.arange(num_scales) / num_scales
            yield (*sizes.tolist(), *(ratio + shift for ratio in ratios))

    def _improve(self, score: float, x: tuple[float, ...], num_scales: int) -> tuple[float, tuple[float, ...]]:
        directions = np.eye(len(x))
        if num_scales > 1:
            directions = np.concatenate([directions, [np.arange(len(x)) < num_scales]])
        step = _FIRST_STEP
        while step >= _LAST_STEP:
            before = score
            for direction in (*directions, *-directions):
                trial = self._bounded(tuple(x + step * direction), num_scales)
                if (better := self._score(trial, num_scales)) > score + _LEAST_GAIN:
                    score, x = better, trial
            if score == before:
                step /= 2
        return score, x

    def _score(self, x: tuple[float, ...], num_scales: int) -> float:
        return self.score(_candidate(x, num_scales))

    def _bounded(self, x: tuple[float, ...], num_scales: int) -> tuple[float, ...]:
        low, high = np.log2(STRIDES_PER_SIZE) + np.log2(self._stride)
        most = np.log2(_MAX_RATIO)
        return (*np.clip(x[:num_scales], low, high).tolist(), *np.clip(x[num_scales:], -most, most).tolist())


def _logarithms(candidate: Candidate) -> tuple[float, ...]:
    return tuple(np.log2([*candidate.sizes, *candidate.ratios]).tolist())


def _candidate(x: tuple[float, ...], num_scales: int) -> Candidate:
    values = np.exp2(x).tolist()
    return Candidate(tuple(sorted(values[:num_scales])), tuple(sorted(values[num_scales:])))
