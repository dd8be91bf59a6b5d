"""Reads the training images of a run as one endless stream, independent of the number of processes.

Position p of the stream is a place in the order of Detectron2's sampler. Its image and the random numbers of its
augmentation follow from the seed and p. Step t of a training takes the t-th batch of ``SOLVER.IMS_PER_BATCH`` images,
of which each process reads its share. So the examples depend neither on the number of processes nor on
``DATALOADER.NUM_WORKERS``, and a run continues at step t without reading an image of an earlier step.

With one process, the order is that of Detectron2's own loader with the same seed.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader

from retina_plugin.core.errors import TrainingDataError
from retina_plugin.data.reading import Report, SkipUnreadableDataset, UnreadableImages
from retina_plugin.data.tiles import build_train_mapper, tiled_arguments
from retina_plugin.data.workers import ignore_signals

# What Detectron2's samplers draw when they are made: the seed of their order and, one of them, its subset.
_DRAWN = ("_seed", "_indexes_subset")

Item = tuple[int, int, int]  # position in the stream, index of the image, group of images that it is batched with


def build_resumable_train_loader(cfg: CfgNode, mapper: Callable[[dict], Any] | None = None) -> Iterable[list[Any]]:
    """Build the training data of a configuration in place of Detectron2's ``build_detection_train_loader``.

    Args:
        cfg: a configuration with the plugin's keys.
        mapper: makes a training example of a dataset dict; by default ``DatasetMapper(cfg, is_train=True)``. With
            ``INPUT.TILE.SIZE``, its augmentations are those of tiles, so that it must be a ``DatasetMapper``.

    Returns:
        A ``ResumableTrainLoader``; for a registered data set without indices (an ``IterableDataset``), which has no
        positions either, Detectron2's own loader.

    Raises:
        ConfigError: the images cannot be cut into tiles as ``INPUT.TILE.SIZE`` asks.
    """
    mapper = build_train_mapper(cfg, mapper)
    # Detectron2 reads the data sets, filters and serializes them, and makes the sampler, which draws its seed.
    loader = build_detection_train_loader(
        cfg, mapper=_unchanged, aspect_ratio_grouping=False, num_workers=0, **tiled_arguments(cfg)
    )
    if not isinstance(loader.dataset, ToIterableDataset):
        return build_detection_train_loader(cfg, mapper=mapper)
    sampler = loader.dataset.sampler
    if sampler._seed < 0:  # Detectron2's main branch passes SEED, where -1 means any
        sampler._seed = comm.shared_random_seed()
    return ResumableTrainLoader(
        loader.dataset.dataset,
        mapper,
        sampler,
        images_per_step=cfg.SOLVER.IMS_PER_BATCH,
        group_by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        max_unreadable=cfg.DATALOADER.MAX_UNREADABLE,
    )


class ResumableTrainLoader:
    """Iterator over the steps of a training; an item is a list of ``images_per_step / processes`` examples.

    No image is read and no worker is started before the first ``next()``. All processes have the same ``state_dict()``.
    """

    def __init__(
        self,
        images: Any,
        mapper: Callable[[dict], Any],
        sampler: Any,
        *,
        images_per_step: int,
        group_by_aspect_ratio: bool,
        num_workers: int,
        max_unreadable: int = -1,
    ):
        """Set up the stream of map-style dataset ``images``, in the order of one of Detectron2's training samplers.

        Args:
            images_per_step: of all processes together.
            group_by_aspect_ratio: whether all images of a batch are wider than high, or none is.
            num_workers: reading processes of each training process; 0 to read in the training process.
            max_unreadable: how many different images may be unreadable; -1 for 1 % of them, at least 10.
        """
        self._images = images
        self._mapper = mapper
        self._sampler = sampler
        self._images_per_step = images_per_step
        self._num_workers = num_workers
        self._group_of = self._groups_of_images() if group_by_aspect_ratio else bytes(len(images))
        self.unreadable = UnreadableImages(max(10, len(images) // 100) if max_unreadable < 0 else max_unreadable)
        self._reports: list[Report] = []
        self._step = 0
        self._examples: Iterator[tuple[Any, list[Report]]] | None = None
        self._last_example: Any = None

    @property
    def num_images(self) -> int:
        return len(self._images)

    @property
    def images(self) -> Any:
        """The dataset dicts: a sequence without ``__iter__``."""
        return self._images

    def __iter__(self) -> "ResumableTrainLoader":
        return self

    def __next__(self) -> list[Any]:
        if self._examples is None:
            self._examples = iter(self._start_reading())
        share = self._images_per_step // comm.get_world_size()
        batch = [self._readable_example(*next(self._examples)) for _ in range(share)]
        self._step += 1
        return batch

    def pop_reports(self) -> list[Report]:
        """Return the images that this process could not read since the last call, with the reasons."""
        reports, self._reports = self._reports, []
        return reports

    def indices(self, step: int = 0) -> Iterator[list[Item]]:
        """Yield the items of each batch of all processes, from a step on."""
        # `iter(sampler)` is the share of this process.
        batches = _batched(enumerate(self._sampler._infinite_indices()), self._group_of, self._images_per_step)
        return itertools.islice(batches, step, None)

    def state_dict(self) -> dict[str, Any]:
        drawn = {name: vars(self._sampler)[name] for name in _DRAWN if name in vars(self._sampler)}
        return {
            "step": self._step,
            "images_per_step": self._images_per_step,
            "num_images": self.num_images,
            "sampler": {"class": type(self._sampler).__name__, **drawn},
            "unreadable": self.unreadable.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another loader stopped; with other images or another sampler, start anew with a warning."""
        drawn = dict(state["sampler"])
        self._examples = None
        self._step = 0
        if drawn.pop("class") != type(self._sampler).__name__ or state["num_images"] != self.num_images:
            logging.getLogger(__name__).warning(
                "The order of the training images starts anew: the checkpoint's is of %d images and of a %s, this one "
                "of %d images and of a %s.",
                *(state["num_images"], state["sampler"]["class"], self.num_images, type(self._sampler).__name__),
            )
            return
        vars(self._sampler).update(drawn)
        self.unreadable.load_state_dict(state["unreadable"])
        # With another batch size, images that were trained on are not repeated before their turn.
        self._step = state["step"] * state["images_per_step"] // self._images_per_step

    def _groups_of_images(self) -> bytes:
        # Detectron2 groups by the size of the example, after the image was read.
        return bytes(not _is_wide(self._images[i]) for i in range(len(self._images)))

    def _start_reading(self) -> DataLoader:
        rank, processes = comm.get_rank(), comm.get_world_size()
        share = self._images_per_step // processes
        # The data loader must not refer to this object: with a cycle, the garbage collector would end the workers, and
        # would take the queues apart before their last message.
        return DataLoader(
            SkipUnreadableDataset(self._images, self._mapper, self._substitutes(), int(self._sampler._seed)),
            sampler=itertools.chain.from_iterable(batch[rank::processes] for batch in self.indices(self._step)),
            batch_size=None,
            num_workers=self._num_workers,
            # Two batches ahead, even with few workers.
            prefetch_factor=max(2, math.ceil(2 * share / self._num_workers)) if self._num_workers else None,
            worker_init_fn=ignore_signals,
            collate_fn=_unchanged,
            # By default, a data loader draws from the generator of the training step whenever it starts.
            generator=torch.Generator(),
        )

    def _readable_example(self, example: Any, reports: list[Report]) -> Any:
        """The example or, if no substitute could be read, the last one; the reports end training at a safe point."""
        self._reports += reports
        if example is None and self._last_example is None:
            self.unreadable.add(reports)
            raise TrainingDataError(
                f"none of the first {len(reports)} training images could be read:\n{self.unreadable.examples()}\n"
                "Is the folder of images that the data set was registered with the right one?"
            )
        self._last_example = self._last_example if example is None else example
        return self._last_example

    def _substitutes(self) -> list[np.ndarray]:
        """Indices that the sampler draws from, for each of the two groups."""
        drawn_from = np.asarray(vars(self._sampler).get("_indexes_subset", np.arange(self.num_images)))
        group_of = np.frombuffer(self._group_of, dtype=np.uint8)[drawn_from]
        return [drawn_from[group_of == group] for group in (0, 1)]


def _is_wide(image: Any) -> bool:
    try:
        return bool(image.get("width", 0) > image.get("height", 0))  # bool: sizes may be NumPy's or torch's
    except (AttributeError, TypeError):
        return False  # no dict, which the mapper may take, or no numbers, which it will name


def _batched(indices: Iterable[tuple[int, int]], group_of: bytes, size: int) -> Iterator[list[Item]]:
    buckets: tuple[list[Item], list[Item]] = [], []
    for position, index in indices:
        group = group_of[index]
        bucket = buckets[group]
        bucket.append((position, index, group))
        if len(bucket) == size:
            yield bucket[:]
            bucket.clear()


def _unchanged(value: Any) -> Any:
    return value
