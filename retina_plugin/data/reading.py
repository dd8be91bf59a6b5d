"""Reads training images, replaces those that cannot be read, and counts them."""

import contextlib
import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.utils.serialize import PicklableWrapper
from PIL import Image
from torch.utils.data import Dataset

from retina_plugin.core.errors import FileError, TrainingDataError
from retina_plugin.core.files import refuse_special_file
from retina_plugin.core.rng import seeded
from retina_plugin.core.text import one_line

# What mappers raise for a file that is missing, cut, not an image, or of another size than its annotations say. Pillow
# also raises SyntaxError (a broken PNG), struct.error and zlib.error. Any other exception is a mistake in a program.
UNREADABLE = (
    *(OSError, ValueError, EOFError, SyntaxError, struct.error, zlib.error),
    *(Image.DecompressionBombError, cv2.error),
)
MAX_SUBSTITUTES = 20
LOGGED_IMAGES = 10

Report = tuple[str, str]  # file name of an image that cannot be read, and the reason


class SkipUnreadableDataset(Dataset):
    """Maps a position of the training stream to the mapper's example of its image, or of a substitute.

    An item depends only on the seed and its position. A substitute is drawn from the images of the same group.
    """

    def __init__(self, images: Any, mapper: Callable[[dict], Any], groups: Sequence[np.ndarray], seed: int):
        """
        Args:
            images: map-style dataset of Detectron2's dataset dicts.
            mapper: makes a training example of a dataset dict, or None to skip the image.
            groups: arrays of indices; the images of one array may replace each other.
        """
        self._images = images
        self._mapper = PicklableWrapper(mapper)
        self._groups = groups
        self._seed = seed

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[Any, list[Report]]:
        """Read the image of a (position, index, group).

        Returns:
            The example, None if neither the image nor a substitute can be read; and the images that cannot be read.
        """
        position, index, group = item
        reports: list[Report] = []
        for candidate in self._candidates(position, index, group):
            image = self._images[candidate]
            file = file_name_of(image)
            name = one_line(file) or f"image {candidate}"
            try:
                refuse_special_file(file)
                with seeded(self._seed, position):
                    example = self._mapper(image)
            except UNREADABLE as error:
                reports.append((name, _reason(error)))
                continue
            if example is not None:
                return example, reports
        return None, reports

    def _candidates(self, position: int, index: int, group: int) -> Iterator[int]:
        yield index
        others = self._groups[group]
        # Not the generator of the mapper, whose state depends on where the mapper failed.
        rng = np.random.default_rng((self._seed, position))
        yield from map(int, rng.choice(others, min(MAX_SUBSTITUTES, len(others)), replace=False))


class EvaluationMapper:
    """Calls a mapper of an evaluation, which leaves out no image."""

    def __init__(self, mapper: Callable[[dict], Any]):
        self._mapper = mapper

    def __call__(self, image: dict) -> Any:
        """
        Raises:
            FileError: the image cannot be read.
        """
        name = file_name_of(image)
        with explain_unreadable(name):
            refuse_special_file(name)
            return self._mapper(image)


@contextlib.contextmanager
def explain_unreadable(name: str) -> Iterator[None]:
    """Raise ``FileError`` for what reading an image of an evaluation raises."""
    try:
        yield
    except UNREADABLE as error:
        raise FileError(
            f"{one_line(name)} cannot be read ({_reason(error)}), and an evaluation needs every image"
        ) from error


class UnreadableImages:
    """The images of a run that could not be read, from all processes.

    The log names the first ``LOGGED_IMAGES``, and then gives the number whenever it has doubled.
    """

    def __init__(self, limit: int):
        self.limit = limit  # of different images
        self._reasons: dict[str, str] = {}
        self._next_summary = 2 * LOGGED_IMAGES
        self._logger = logging.getLogger(__name__)

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, reports: Iterable[Report]) -> None:
        """Add images, some of which may be known."""
        for name, reason in reports:
            if name in self._reasons:
                continue
            self._reasons[name] = reason
            if len(self) <= LOGGED_IMAGES:
                last = " Further ones are only counted" if len(self) == LOGGED_IMAGES else ""
                self._logger.warning("%s cannot be read (%s): another image is taken.%s", name, reason, last)
        if len(self) >= self._next_summary:
            self._logger.warning("%d training images could not be read so far.", len(self))
            self._next_summary = 2 * len(self)

    def check(self) -> None:
        """Raise ``TrainingDataError`` if there are more images than the limit."""
        if len(self) > self.limit:
            raise TrainingDataError(
                f"{len(self)} different training images could not be read, and DATALOADER.MAX_UNREADABLE allows "
                f"{self.limit}:\n{self.examples()}\nRepair them, or take them out of the data set, or raise the limit"
            )

    def examples(self, count: int = 5) -> str:
        """The first images with their reasons, one per line."""
        lines = [f"  {name}: {reason}" for name, reason in list(self._reasons.items())[:count]]
        return "\n".join(lines + [f"  and {len(self) - count} more"] * (len(self) > count))

    def state_dict(self) -> dict[str, str]:
        return dict(self._reasons)

    def load_state_dict(self, state: dict[str, str]) -> None:
        self._reasons = dict(state)
        self._next_summary = 2 * max(LOGGED_IMAGES, len(state))


def file_name_of(image: Any) -> str:
    """Return the ``file_name`` of a dataset dict, empty if it has none; a mapper may take items of other types."""
    return str(image.get("file_name", "")) if isinstance(image, Mapping) else ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(' '.join(str(error).split()))}"
