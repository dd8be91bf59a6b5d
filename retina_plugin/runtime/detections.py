"""The detections of an image, and the same in the words of other libraries."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from retina_plugin.runtime.drawing import draw_objects
from retina_plugin.runtime.images import read_image


@dataclass(frozen=True, eq=False)
class Detections:
    """The N objects that were found in an image, highest score first.

    Attributes:
        boxes: float32 (N, 4), XYXY in pixels of the image, which is turned as its EXIF says.
        scores: float32 (N,).
        class_ids: int64 (N,), labels from 0 to K - 1.
        class_names: K names, in the order of the labels.
        height, width: of the image, in pixels.
        name: the file or video that the image comes from, "image I" for the array or Pillow image I of a call.
        frame: number of the image in its video, from 0; None outside a video.
        image_id: of a data set that the image was read from; None outside one.
        image: the pixels, if they were asked for.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    class_names: tuple[str, ...]
    height: int
    width: int
    name: str = "image 0"
    frame: int | None = None
    image_id: Any = None
    image: Image.Image | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = len(self.scores)
        expected = {
            "boxes": (self.boxes, (n, 4), np.float32),
            "scores": (self.scores, (n,), np.float32),
            "class_ids": (self.class_ids, (n,), np.int64),
        }
        for name, (array, shape, dtype) in expected.items():
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {array.shape} of {array.dtype}, not {shape} of {np.dtype(dtype)}")
        if n and not 0 <= self.class_ids.min() <= self.class_ids.max() < len(self.class_names):
            raise ValueError(f"class_ids are outside 0..{len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def labels(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[label] for label in self.class_ids]

    def to_coco(self, image_id: Any = None, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO results, with the numbers of Detectron2's ``COCOEvaluator``.

        Args:
            image_id: None for that of the data set, or 1 outside one.
            category_ids: by label; None for 1 to K.
        """
        image_id = (1 if self.image_id is None else self.image_id) if image_id is None else image_id
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        found = zip(self.class_ids, to_xywh(self.boxes), self.scores.tolist())
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            for label, box, score in found
        ]

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections``, with ``class_name`` in its data. Needs the package supervision."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.class_ids.copy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def to_sahi(self) -> list[Any]:
        """Return a ``sahi.prediction.ObjectPrediction`` for each object. Needs the package sahi."""
        from sahi.prediction import ObjectPrediction

        found = zip(self.boxes.tolist(), self.class_ids.tolist(), self.labels, self.scores.tolist())
        return [
            ObjectPrediction(
                bbox=box, category_id=label, category_name=name, score=score, full_shape=[self.height, self.width]
            )
            for box, label, name, score in found
        ]

    def to_fiftyone(self) -> Any:
        """Return a ``fiftyone.Detections``, whose boxes are [x, y, width, height] of sides 1. Needs fiftyone."""
        import fiftyone

        relative = self.boxes / np.array([self.width, self.height] * 2, dtype=np.float32)
        relative[:, 2:] -= relative[:, :2]
        found = zip(self.labels, relative.tolist(), self.scores.tolist())
        return fiftyone.Detections(
            detections=[fiftyone.Detection(label=name, bounding_box=box, confidence=s) for name, box, s in found]
        )

    def draw(self, lowest_score: float = 0.0) -> Image.Image:
        """Return the image with boxes, class names and scores of all objects that have at least a score.

        Raises:
            ValueError: the pixels were not kept, and the image is no file.
            ImageError: the file cannot be read again.
        """
        if self.image is None and (self.frame is not None or not os.path.exists(self.name)):
            raise ValueError(f"the pixels of {self.name} are gone: predict with keep_images=True")
        image = read_image(self.name) if self.image is None else self.image
        drawn = self.scores >= lowest_score
        return draw_objects(
            image, self.boxes[drawn], self.class_ids[drawn], self.scores[drawn], class_names=self.class_names
        )


def to_xywh(boxes: np.ndarray | Sequence[Sequence[float]]) -> list[list[float]]:
    """Convert boxes (N, 4) from XYXY to XYWH in float32, like Detectron2's ``BoxMode.convert`` does with tensors."""
    converted = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    converted[:, 2:] -= converted[:, :2]
    return converted.tolist()
