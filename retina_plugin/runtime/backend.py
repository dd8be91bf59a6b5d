"""What a predictor needs of whatever runs a detector."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image


class Prepared(NamedTuple):
    """The input of the network, and the size of the image that it was made of.

    Attributes:
        pixels: array or tensor (C, h, w); or what else the backend takes, with a ``shape``.
        height, width: of the image, in pixels.
    """

    pixels: Any
    height: int
    width: int


class RawDetections(NamedTuple):
    """Boxes float32 (N, 4), XYXY in pixels of the image; scores float32 (N,), descending; class_ids int64 (N,)."""

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


class Backend(Protocol):
    """A detector that is ready to run.

    Attributes:
        class_names: K names, in the order of its labels.
        score_threshold: detections of the model have a higher score.
        description: model, weights, device and precision, for a summary.
    """

    class_names: tuple[str, ...]
    score_threshold: float
    description: dict[str, Any]

    def prepare(self, image: Image.Image) -> Prepared:
        """Convert and resize an image; called in threads.

        Raises:
            ValueError: no pixel of it would be left.
        """

    def infer(self, batch: Sequence[Prepared]) -> list[RawDetections]:
        """Detect the objects of images; called in one thread."""


@dataclass(frozen=True)
class ModelSource:
    """Where a detector is, and what to change; see :class:`~retina_plugin.Predictor`."""

    model: Any
    weights: str | os.PathLike | None = None
    device: str | None = None
    opts: Sequence[Any] = ()
    imports: Sequence[str] = ()
    allow_unsafe_yaml: bool = False
