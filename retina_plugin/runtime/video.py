"""Reads and writes videos through OpenCV, which is imported when there is one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from retina_plugin.core.errors import ImageError, MachineError
from retina_plugin.core.files import UNFINISHED_SUFFIX

_DEFAULT_RATE = 25.0  # frames a second, where a camera does not say


@contextlib.contextmanager
def open_video(name: str) -> Iterator[Any]:
    """Open a video file, a camera by its number, or a stream by its address, as a ``cv2.VideoCapture``.

    Raises:
        ImageError: there is no such file or camera, or OpenCV cannot read it.
    """
    cv2 = _import_cv2(name)
    if os.path.lexists(name) and not os.path.isfile(name):
        raise ImageError(name, "it is not a file")
    is_camera = name.isdecimal() and not os.path.exists(name)
    if not is_camera and "://" not in name and not os.path.exists(name):
        raise ImageError(name, "there is no such file")
    capture = cv2.VideoCapture(int(name) if is_camera else name)
    try:
        if not capture.isOpened():
            raise ImageError(name, "there is no such camera" if is_camera else "OpenCV cannot open it as a video")
        yield capture
    finally:
        capture.release()


def read_frames(capture: Any, name: str) -> Iterator[Image.Image]:
    """Yield the frames of an open video as RGB images.

    Raises:
        ImageError: it has none.
    """
    count = 0
    while True:
        is_read, frame = capture.read()
        if not is_read:
            break
        yield Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
        count += 1
    if not count:
        raise ImageError(name, "the video has no frames")


def frame_rate(name: str) -> float:
    """Return the frames a second of a video file; 25 if the file, or a camera, does not say.

    Raises:
        ImageError: see :func:`open_video`.
    """
    if not os.path.isfile(name):
        return _DEFAULT_RATE
    cv2 = _import_cv2(name)
    with open_video(name) as capture:
        rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate < 1000 else _DEFAULT_RATE


class VideoFile:
    """Writes frames to an MP4 file, which has its name once it is whole."""

    def __init__(self, path: Path, rate: float):
        """
        Args:
            path: ends with ``.mp4``; its folder exists.
            rate: frames a second.
        """
        self._path, self._rate = path, rate
        self._writer: Any = None  # opened when the size is known
        self._unfinished = path.with_name(f"{path.stem}{UNFINISHED_SUFFIX}.mp4")

    def __enter__(self) -> "VideoFile":
        return self

    def write(self, frame: Image.Image) -> None:
        """Add a frame, as large as the first.

        Raises:
            MachineError: OpenCV cannot write the file.
        """
        if self._writer is None:
            cv2 = _import_cv2(str(self._path))
            arguments = str(self._unfinished), cv2.VideoWriter_fourcc(*"mp4v"), self._rate, frame.size
            self._writer = cv2.VideoWriter(*arguments)
            if not self._writer.isOpened():
                raise MachineError(f"{self._path} cannot be written: OpenCV has no encoder for it here")
        self._writer.write(np.ascontiguousarray(np.asarray(frame)[:, :, ::-1]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if kind is None:
            os.replace(self._unfinished, self._path)
        else:
            self._unfinished.unlink(missing_ok=True)


def _import_cv2(name: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImageError(name, "videos need OpenCV: pip install opencv-python-headless") from error
    return cv2
