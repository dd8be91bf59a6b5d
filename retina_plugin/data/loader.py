"""The training images of a run as one endless stream, whatever number of processes reads it.

Position p of the stream is a place in the order of Detectron2's sampler. Its image, and the random numbers of its
augmentation, follow from the seed and p. Step t of a training takes the t-th batch of ``SOLVER.IMS_PER_BATCH`` images,
of which each process reads its share. So what is trained on depends neither on the number of processes nor on
``DATALOADER.NUM_WORKERS``, and a run goes on at step t by counting, without reading an image before it.

With one process, the order is that of Detectron2's own loader with the same seed.
"""

import itertools
import logging
import math

import numpy as np
import torch
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader

from retina_plugin.core.errors import TrainingDataError
from retina_plugin.data.reading import SkipUnreadableDataset
from retina_plugin.data.unreadable import UnreadableImages
from retina_plugin.data.worker_init import ignore_signals

# What Detectron2's samplers draw when they are made: the seed of their order, and the subset that one of them has.
_DRAWN = ("_seed", "_indexes_subset")


def build_resumable_train_loader(cfg, mapper=None):
    """Build the training data of a configuration; takes the place of Detectron2's ``build_detection_train_loader``.

    Args:
        cfg: a configuration with the plugin's keys.
        mapper: makes a training example of a dataset dict; by default ``DatasetMapper(cfg, is_train=True)``.

    Returns:
        ResumableTrainLoader. A registered data set without indices (an ``IterableDataset``) has no positions either:
        for it, Detectron2's own loader is returned.
    """
    mapper = mapper or DatasetMapper(cfg, True)
    # Detectron2 reads the data sets, filters and serializes them, and makes the sampler, which draws its seed.
    loader = build_detection_train_loader(cfg, mapper=_unmapped, aspect_ratio_grouping=False, num_workers=0)
    if not isinstance(loader.dataset, ToIterableDataset):
        return build_detection_train_loader(cfg, mapper=mapper)
    sampler = loader.dataset.sampler
    if sampler._seed < 0:  # Detectron2's main takes SEED, whose -1 stands for any
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
    """Iterator over the steps of a training: each time a list of ``images_per_step / processes`` examples.

    Nothing is read, and no worker process started, before the first ``next()``. ``state_dict()`` is where the stream
    is, and the same in all processes.
    """

    def __init__(
        self, images, mapper, sampler, *, images_per_step, group_by_aspect_ratio, num_workers, max_unreadable=-1
    ):
        """
        Args:
            images: map-style dataset of dataset dicts.
            mapper: see :class:`SkipUnreadableDataset`.
            sampler: one of Detectron2's training samplers.
            images_per_step: of all processes together.
            group_by_aspect_ratio: whether a batch has either images that are wider than high, or others.
            num_workers: processes that read, of each training process; 0 to read in the training process.
            max_unreadable: how many different images may be unreadable; -1 for 1 % of them, at least 10.
        """
        self._images = images
        self._mapper = mapper
        self._sampler = sampler
        self._images_per_step = images_per_step
        self._num_workers = num_workers
        self._group_of = self._groups_of_images() if group_by_aspect_ratio else bytes(len(images))
        if max_unreadable < 0:
            max_unreadable = max(10, len(images) // 100)
        self.unreadable = UnreadableImages(max_unreadable)
        self._reports = []
        self._step = 0
        self._examples = None
        self._last_example = None

    @property
    def num_images(self):
        return len(self._images)

    def __iter__(self):
        return self

    def __next__(self):
        if self._examples is None:
            self._examples = iter(self._start_reading())
        share = self._images_per_step // comm.get_world_size()
        batch = [self._accept(*next(self._examples)) for _ in range(share)]
        self._step += 1
        return batch

    def take_reports(self):
        """What this process could not read since the last call: (file name, reason) pairs."""
        reports, self._reports = self._reports, []
        return reports

    def indices(self, step=0):
        """Yield, from a step on, the (position, index of the image, group) triples of its batch, for all processes."""
        # `iter(sampler)` is the share of this process.
        batches = _batched(enumerate(self._sampler._infinite_indices()), self._group_of, self._images_per_step)
        return itertools.islice(batches, step, None)

    def state_dict(self):
        drawn = {name: vars(self._sampler)[name] for name in _DRAWN if name in vars(self._sampler)}
        return {
            "step": self._step,
            "images_per_step": self._images_per_step,
            "num_images": self.num_images,
            "sampler": {"class": type(self._sampler).__name__, **drawn},
            "unreadable": self.unreadable.state_dict(),
        }

    def load_state_dict(self, state):
        """Go on where another stream was. What cannot be continued starts anew, with a warning."""
        logger = logging.getLogger(__name__)
        drawn = dict(state["sampler"])
        self._examples = None
        self._step = 0
        if drawn.pop("class") != type(self._sampler).__name__ or state["num_images"] != self.num_images:
            logger.warning(
                "The order of the training images starts anew: the checkpoint's is of %d images and of a %s, this one "
                "of %d images and of a %s.",
                *(state["num_images"], state["sampler"]["class"], self.num_images, type(self._sampler).__name__),
            )
            return
        vars(self._sampler).update(drawn)
        self.unreadable.load_state_dict(state["unreadable"])
        # With another batch size, what was trained on is not trained on again before its turn.
        self._step = state["step"] * state["images_per_step"] // self._images_per_step

    def _groups_of_images(self):
        # Detectron2 compares these numbers of examples, after an image was read.
        images = (self._images[i] for i in range(len(self._images)))
        return bytes(image.get("width", 0) <= image.get("height", 0) for image in images)

    def _start_reading(self):
        rank, processes = comm.get_rank(), comm.get_world_size()
        share = self._images_per_step // processes
        # Nothing here refers to this object: a cycle would leave the end of the workers to the garbage collector, which
        # takes the queues apart before their last message.
        return DataLoader(
            SkipUnreadableDataset(self._images, self._mapper, self._substitutes(), int(self._sampler._seed)),
            sampler=itertools.chain.from_iterable(batch[rank::processes] for batch in self.indices(self._step)),
            batch_size=None,
            num_workers=self._num_workers,
            # Two batches ahead, also where there are few workers.
            prefetch_factor=max(2, math.ceil(2 * share / self._num_workers)) if self._num_workers else None,
            worker_init_fn=ignore_signals,
            collate_fn=_unmapped,
            # Otherwise it draws from the generator of the training step, once for each start.
            generator=torch.Generator(),
        )

    def _accept(self, example, reports):
        self._reports += reports
        if example is None:
            if self._last_example is None:
                self.unreadable.add(reports)
                raise TrainingDataError(
                    f"none of the first {len(reports)} training images could be read:\n{self.unreadable.examples()}\n"
                    "Is the folder of images that the data set was registered with the right one?"
                )
            # All substitutes failed, too. The reports will end the training where a checkpoint can be saved.
            return self._last_example
        self._last_example = example
        return example

    def _substitutes(self):
        drawn_from = vars(self._sampler).get("_indexes_subset", np.arange(self.num_images))
        drawn_from = np.asarray(drawn_from)
        group_of = np.frombuffer(self._group_of, dtype=np.uint8)[drawn_from]
        return [drawn_from[group_of == group] for group in (0, 1)]


def _batched(indices, group_of, size):
    buckets = [], []
    for position, index in indices:
        group = group_of[index]
        bucket = buckets[group]
        bucket.append((position, index, group))
        if len(bucket) == size:
            yield bucket[:]
            bucket.clear()


def _unmapped(value):
    return value
