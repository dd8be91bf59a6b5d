"""Annotations as columns: what is a loop over objects otherwise is one operation for all boxes."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Table:
    """G annotations with their images.

    Attributes:
        annotations: list of G dicts.
        images: list of G dicts, the image of each.
        boxes: float64 (G, 4), XYWH in pixels, as in the file.
        sizes: float64 (G, 2), width and height of the image.
        crowd: bool (G,), which training leaves out.
    """

    annotations: list
    images: list
    boxes: np.ndarray
    sizes: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, entries):
        """Columns of :class:`Entries` whose annotations all have an image."""
        image_of = {image["id"]: image for image in entries.images}
        images = [image_of[annotation["image_id"]] for annotation in entries.annotations]
        return cls(
            entries.annotations,
            images,
            np.array([annotation["bbox"] for annotation in entries.annotations], dtype=np.float64).reshape(-1, 4),
            np.array([(image["width"], image["height"]) for image in images], dtype=np.float64).reshape(-1, 2),
            # As Detectron2 reads it: what does not equal 0 is a crowd.
            np.array([annotation.get("iscrowd", 0) != 0 for annotation in entries.annotations], dtype=bool),
        )

    def __len__(self):
        return len(self.annotations)

    def select(self, which):
        """The rows of a mask (G,)."""
        rows = np.flatnonzero(which)
        return Table(
            [self.annotations[i] for i in rows],
            [self.images[i] for i in rows],
            *(column[rows] for column in (self.boxes, self.sizes, self.crowd)),
        )

    def report(self, found, kind, which, describe):
        """Add a finding for each row of a mask; ``describe`` makes its detail of the row's number."""
        for i in np.flatnonzero(which):
            found.add(kind, describe(i), self.images[i], self.annotations[i])
