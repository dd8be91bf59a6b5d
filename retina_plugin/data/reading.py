"""Reading training images, some of which cannot be read."""

import struct
import zlib

import cv2
import numpy as np
from detectron2.utils.serialize import PicklableWrapper
from PIL import Image
from torch.utils.data import Dataset

from retina_plugin.core.rng import seeded

# What mappers raise for a file that is missing, cut, of another size than its annotations say, or no image. Pillow adds
# SyntaxError (a broken PNG), struct.error and zlib.error. Anything else is a mistake in a program.
UNREADABLE = (
    *(OSError, ValueError, EOFError, SyntaxError, struct.error, zlib.error),
    *(Image.DecompressionBombError, cv2.error),
)
MAX_SUBSTITUTES = 20


class SkipUnreadableDataset(Dataset):
    """Maps a position of the training stream to what the mapper makes of its image.

    What an item is depends on the seed and its position alone. Where the image cannot be read, another one is taken,
    drawn from those of the same group.
    """

    def __init__(self, images, mapper, groups, seed):
        """
        Args:
            images: map-style dataset of Detectron2's dataset dicts.
            mapper: makes a training example of a dataset dict. It may return None to skip an image.
            groups: list of index arrays, one of which has the images that may stand in for each other.
            seed: of the stream.
        """
        self._images = images
        self._mapper = PicklableWrapper(mapper)
        self._groups = groups
        self._seed = seed

    def __getitem__(self, item):
        """
        Args:
            item: (position, index of the image, its group).

        Returns:
            (example or None, list of (file name, reason)): None if neither the image nor any of the substitutes can be
            read; and what could not be read.
        """
        position, index, group = item
        unreadable = []
        for candidate in self._candidates(position, index, group):
            image = self._images[candidate]
            name = image.get("file_name", f"image {candidate}")
            try:
                with seeded(self._seed, position):
                    example = self._mapper(image)
            except UNREADABLE as error:
                unreadable.append((name, f"{type(error).__name__}: {' '.join(str(error).split())}"))
                continue
            if example is not None:
                return example, unreadable
        return None, unreadable

    def _candidates(self, position, index, group):
        yield index
        others = self._groups[group]
        # Not the generator of the mapper: how much it has drawn depends on how far it came.
        rng = np.random.default_rng((self._seed, position))
        yield from map(int, rng.choice(others, min(MAX_SUBSTITUTES, len(others)), replace=False))
