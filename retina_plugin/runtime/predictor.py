"""Detects objects in images and videos with one trained detector."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from retina_plugin.core.cores import num_cores
from retina_plugin.core.errors import ConfigError, ImageError
from retina_plugin.runtime.backend import Backend, ModelSource, Prepared, RawDetections
from retina_plugin.runtime.detections import Detections
from retina_plugin.runtime.images import read_image
from retina_plugin.runtime.inputs import Input, Source, find_sources, is_single_image, iterate_images
from retina_plugin.runtime.prefetch import batches, in_order, prefetch
from retina_plugin.runtime.thresholds import ScoreThreshold, bounds_of_classes, lowest_threshold

_MAX_WORKERS = 8


class _Item(NamedTuple):
    number: int
    source: Source
    prepared: Prepared | ImageError
    image: Image.Image | None


class Predictor:
    """Detects objects with the detections of the evaluation, bit for bit.

    ::

        predictor = Predictor("output/mine")                     # OUTPUT_DIR of a training
        found = predictor("street.jpg")                          # Detections of one image
        print(found.labels, found.scores, found.boxes)
        for found in predictor.stream("photos/"):                # of many, decoded ahead
            ...

    A predictor can be pickled: the copy has no model, and loads it when it is first used.
    """

    def __init__(
        self,
        model: Any,
        weights: str | os.PathLike | None = None,
        device: str | None = None,
        score_threshold: ScoreThreshold = None,
        *,
        batch_size: int = 1,
        num_workers: int | None = None,
        opts: Sequence[Any] = (),
        imports: Sequence[str] = (),
        allow_unsafe_yaml: bool = False,
    ):
        """
        Args:
            model: ``OUTPUT_DIR`` of a training, a configuration file, or a ``CfgNode``.
            weights: a file or an address as ``MODEL.WEIGHTS``; None for the last checkpoint of the folder, or else
                ``MODEL.WEIGHTS``.
            device: ``cpu``, ``cuda``, ``cuda:N``; None for ``MODEL.DEVICE``. Without a GPU, it is the CPU.
            score_threshold: the lowest score of a detection; a number, or a dict class name -> number, in which None
                names all other classes. None for ``MODEL.RETINANET.SCORE_THRESH_TEST``, as in the evaluation.
            batch_size: images in the model at a time, if their resized sizes are equal. Detections are those of the
                evaluation bit for bit with 1, and up to rounding with more.
            num_workers: threads that decode and resize; None for one a core, at most 8.
            opts, imports, allow_unsafe_yaml: overrides ``["KEY", "VALUE", ...]``, modules as of ``--import``, and
                whether a configuration file may run code.

        Raises:
            ConfigError: the configuration, a threshold or another argument cannot be used.
            CheckpointError: the weights cannot be used.
        """
        workers = min(num_cores(), _MAX_WORKERS) if num_workers is None else num_workers
        for name, value in (("batch_size", batch_size), ("num_workers", workers)):
            if value < 1:
                raise ConfigError([f"{name} is {value}; it must be at least 1"])
        self.score_threshold = score_threshold
        self.batch_size = batch_size
        self.num_workers = workers
        self._source = ModelSource(model, weights, device, tuple(opts), tuple(imports), allow_unsafe_yaml)
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None}

    @property
    def backend(self) -> Backend:
        """What runs the model."""
        if self._backend is None:
            self._load()
        assert self._backend is not None
        return self._backend

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of the labels."""
        return self.backend.class_names

    def __call__(self, inputs: Input | Iterable[Input]) -> Detections | list[Detections]:
        """Detect the objects of one or many images.

        Args:
            inputs: one image (a file, a Pillow image, an array of uint8 in BGR), whose detections are returned; or what
                names many, see :func:`~retina_plugin.runtime.inputs.find_sources`, whose detections are a list.

        Raises:
            ImageError: an image cannot be read; :meth:`stream` goes on with the others.
            ConfigError: an input cannot be used.
        """
        found = []
        for result in self.stream(inputs):
            if isinstance(result, ImageError):
                raise result
            found.append(result)
        return found[0] if is_single_image(inputs) else found

    def stream(
        self, inputs: Input | Iterable[Input], *, recursive: bool = False, keep_images: bool = False
    ) -> Iterator[Detections | ImageError]:
        """Detect the objects of any number of images in their order, a few of which are in memory at a time.

        Args:
            inputs: see :func:`~retina_plugin.runtime.inputs.find_sources`.
            recursive: look into the folders of folders as well.
            keep_images: keep the pixels in :attr:`Detections.image`.

        Yields:
            The detections of an image, or the error of one that cannot be read.

        Raises:
            ConfigError: an input cannot be used.
        """
        for _, result in self.stream_sources(find_sources(inputs, recursive=recursive), keep_images=keep_images):
            yield result

    def stream_sources(
        self, sources: Iterable[Source], *, keep_images: bool = False
    ) -> Iterator[tuple[int, Detections | ImageError]]:
        """:meth:`stream` of sources; yields the number of the source with each result."""
        read = partial(_read, self.backend, keep_images)
        numbered = enumerate(iterate_images(sources))
        ahead = self.num_workers + 2 * self.batch_size
        items = prefetch(numbered, read, workers=self.num_workers, ahead=ahead)
        yield from in_order(self._detect(batches(items, self.batch_size, _kind)))

    def _detect(self, groups: Iterable[list[tuple[int, _Item]]]) -> Iterator[tuple[int, tuple[int, Any]]]:
        for group in groups:
            prepared = [item.prepared for _, item in group if isinstance(item.prepared, Prepared)]
            found = iter(self._infer(prepared) if prepared else ())
            for place, item in group:
                result = item.prepared if isinstance(item.prepared, ImageError) else self._result(item, next(found))
                yield place, (item.number, result)

    def _infer(self, batch: Sequence[Prepared]) -> list[RawDetections]:
        """Run the model: the one place where it is called."""
        return self.backend.infer(batch)

    def _result(self, item: _Item, raw: RawDetections) -> Detections:
        boxes, scores, class_ids = raw
        if self.score_threshold is not None:
            keep = scores >= self._bounds[class_ids]
            boxes, scores, class_ids = boxes[keep], scores[keep], class_ids[keep]
        source, prepared = item.source, item.prepared
        assert isinstance(prepared, Prepared)
        return Detections(
            boxes=boxes,
            scores=scores,
            class_ids=class_ids,
            class_names=self.class_names,
            height=prepared.height,
            width=prepared.width,
            name=source.name,
            frame=source.frame,
            image_id=source.image_id,
            image=item.image,
        )

    def _load(self) -> None:
        self._backend: Backend | None = _open_backend(self._source, lowest_threshold(self.score_threshold))
        names, default = self._backend.class_names, self._backend.score_threshold
        self._bounds: np.ndarray = bounds_of_classes(self.score_threshold, names, default)


def _open_backend(source: ModelSource, lowest_score: float | None) -> Backend:
    """Load a detector.

    Args:
        source: where it is.
        lowest_score: the lowest score that is asked for; None for the model's own threshold.

    Raises:
        ConfigError: the configuration cannot be used.
        CheckpointError: the weights cannot be used.
    """
    from retina_plugin.runtime.torch_backend import TorchBackend, read_model_config

    return TorchBackend(read_model_config(source), lowest_score)


def _read(backend: Backend, keep: bool, numbered: tuple[int, tuple[int, Source]]) -> tuple[int, _Item]:
    """Decode and resize an image, in a thread."""
    place, (number, source) = numbered
    try:
        if source.problem:
            raise ImageError(source.name, source.problem)
        image = read_image(source.image, source.name)
        try:
            return place, _Item(number, source, backend.prepare(image), image if keep else None)
        except (ValueError, MemoryError) as error:
            raise ImageError(source.name, str(error) or type(error).__name__) from error
    except ImageError as error:
        return place, _Item(number, source, error.with_traceback(None), None)


def _kind(item: tuple[int, _Item]) -> tuple[int, ...]:
    prepared = item[1].prepared
    return () if isinstance(prepared, ImageError) else tuple(prepared.pixels.shape)
