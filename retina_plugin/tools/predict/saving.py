"""Saves what belongs to single images: annotated copies, videos of them, labels."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from PIL import Image

from retina_plugin.core.files import atomic_write
from retina_plugin.runtime.detections import Detections
from retina_plugin.runtime.inputs import Source
from retina_plugin.runtime.video import VideoFile, frame_rate
from retina_plugin.tools.predict.labels import write_labels
from retina_plugin.tools.predict.output import ANNOTATED, LABELS

_JPEG_QUALITY = 90


class Frame(NamedTuple):
    """An annotated image of a video, with the number of its source."""

    number: int
    image: Image.Image


class Saver:
    """Saves images and labels in any thread, and frames of videos in their order.

    As a context manager, it completes its last video, or removes it after an error.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        annotated: Sequence[str] | None,
        labels: dict[str, list[str]],
        save_streams: bool,
        draw_from: float,
    ):
        """
        Args:
            folder: of the results.
            sources: of all results.
            annotated: relative path of the annotated copy of each source; None for no copies.
            labels: relative paths of the labels of each source, by format.
            save_streams: save videos of cameras and streams, not of files alone.
            draw_from: lowest score of an object in annotated copies.
        """
        self._folder, self._sources, self._annotated, self._labels = folder, sources, annotated, labels
        self._save_streams, self._draw_from = save_streams, draw_from
        self._videos = contextlib.ExitStack()
        self._video: tuple[int, VideoFile] | None = None

    def save(self, number: int, detections: Detections) -> Frame | None:
        """Save labels and annotated copy of an image, in any thread; return the frame if it is of a video.

        Args:
            number: of the source.
            detections: with the pixels, unless there are no annotated copies.
        """
        for label_format, names in self._labels.items():
            folder = self._folder / LABELS / (label_format if len(self._labels) > 1 else "")
            write_labels(folder / names[number], label_format, detections)
        kind = self._sources[number].kind
        if self._annotated is None or (kind == "stream" and not self._save_streams):
            return None
        drawn = detections.draw(self._draw_from)
        if kind != "image":
            return Frame(number, drawn)
        path = self._folder / ANNOTATED / self._annotated[number]
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
        options = {"compress_level": 1} if kind == "PNG" else {"quality": _JPEG_QUALITY}
        atomic_write(path, lambda file: drawn.save(file, kind, **options), survives_power_cut=False)
        return None

    def finish(self, frame: Frame | None) -> None:
        """Write what :meth:`save` returned; called in the order of the images."""
        if frame is None or self._annotated is None:
            return
        if self._video is None or self._video[0] != frame.number:
            self._videos.close()  # completes the one before
            path = self._folder / ANNOTATED / self._annotated[frame.number]
            os.makedirs(path.parent, exist_ok=True)
            video = VideoFile(path, frame_rate(self._sources[frame.number].name))
            self._video = frame.number, self._videos.enter_context(video)
        self._video[1].write(frame.image)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._videos.__exit__(kind, error, trace)
