"""Finds the images and videos that inputs name: files, folders, patterns, lists, streams, arrays."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from retina_plugin.core.errors import ConfigError, ImageError
from retina_plugin.core.text import one_line
from retina_plugin.runtime.video import open_video, read_frames

Input: TypeAlias = str | os.PathLike[str] | np.ndarray | Image.Image

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"),
)
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://")


@dataclass(frozen=True)
class Source:
    """An image, or a video of many.

    Attributes:
        name: the path or address as it was found; "image N" for an array or a Pillow image.
        image: what :func:`~retina_plugin.runtime.images.read_image` takes.
        kind: "image", "video" or "stream" (a camera or an address, which need not end).
        frame: number of the image in its video, from 0; None outside a video.
        problem: why the input names nothing that can be read; empty if it does.
        image_id: of a data set; None outside one.
    """

    name: str
    image: Input
    kind: str = "image"
    frame: int | None = None
    problem: str = ""
    image_id: Any = None


def find_sources(inputs: Input | Iterable[Input], *, recursive: bool = False) -> list[Source]:
    """List the images and videos that inputs name, in the order of the inputs.

    ==================================  ===============================================================================
    input                               is
    ==================================  ===============================================================================
    array, Pillow image                 an image, see :func:`~retina_plugin.runtime.images.read_image`
    file                                a video by its suffix, else an image
    folder                              its images and videos by their suffixes, sorted; not those that begin with "."
    ``*``, ``?``, ``[...]``, ``**``     the files that match, sorted, if no file has that name
    ``.txt``                            one of the inputs above in every line; relative to the current folder or, if
                                        nothing is there, to that of the list; "#" begins a comment
    digits                              a camera, if no file has that name
    ``rtsp://``, ``rtmp://``, ...       a stream
    ==================================  ===============================================================================

    Args:
        recursive: look into the folders of folders as well.

    Raises:
        ConfigError: a list cannot be read, or an address is not of a stream.
    """
    if isinstance(inputs, (str, os.PathLike, np.ndarray, Image.Image)):
        inputs = [inputs]
    sources: list[Source] = []
    for number, item in enumerate(inputs):
        if isinstance(item, (np.ndarray, Image.Image)):
            sources.append(Source(f"image {number}", item))
        elif isinstance(item, (str, os.PathLike)):
            sources += _find(os.fspath(item), recursive)
        else:
            raise TypeError(f"an input is a path, an array or a Pillow image, not {type(item).__name__}")
    return sources


def iterate_images(sources: Iterable[Source]) -> Iterator[tuple[int, Source]]:
    """Yield every image and every frame of the videos with the number of its source, reading videos as it goes."""
    for number, source in enumerate(sources):
        if source.kind == "image":
            yield number, source
            continue
        try:
            with open_video(source.name) as video:
                for frame, image in enumerate(read_frames(video, source.name)):
                    yield number, replace(source, image=image, frame=frame)
        except ImageError as error:
            yield number, replace(source, problem=error.reason)


def is_single_image(item: object) -> bool:
    """Whether an input names one image, whatever is there: no folder, pattern, list, video or stream."""
    if isinstance(item, (np.ndarray, Image.Image)):
        return True
    if not isinstance(item, (str, os.PathLike)):
        return False
    path = os.fspath(item)
    is_other = path.isdecimal() or "://" in path or path.lower().endswith((".txt", *VIDEO_SUFFIXES))
    return os.path.isfile(path) and not is_other or not (is_other or os.path.isdir(path) or glob.has_magic(path))


def _find(path: str, recursive: bool, in_list: bool = False) -> Iterator[Source]:
    if "://" in path:
        if not path.lower().startswith(_STREAMS):
            advice = f"Download what it names, or give a file, a folder or a stream ({', '.join(_STREAMS)})"
            raise ConfigError([f"{one_line(path)} is an address that is not read. {advice}"])
        yield Source(path, path, "stream")
    elif os.path.isdir(path):
        yield from _find_in_folder(path, recursive)
    elif os.path.lexists(path):
        if path.lower().endswith(".txt") and not in_list:
            yield from _find_in_list(path, recursive)
        else:
            yield _file(path)
    elif path.isdecimal():
        yield Source(path, path, "stream")
    elif glob.has_magic(path):
        found = [match for match in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(match)]
        # "**" follows links to folders, also in a circle: each file once.
        places = {(os.path.realpath(os.path.dirname(match)), os.path.basename(match)): match for match in found[::-1]}
        yield from map(_file, sorted(places.values()))
        if not found:
            yield Source(path, path, problem="no file matches this pattern")
    else:
        yield _file(path)


def _file(path: str) -> Source:
    return Source(path, path, "video" if path.lower().endswith(VIDEO_SUFFIXES) else "image")


def _find_in_folder(folder: str, recursive: bool) -> Iterator[Source]:
    found = 0
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        yield Source(folder, folder, problem=error.strerror or str(error))
        return
    for name in names:
        path = os.path.join(folder, name)
        if recursive and os.path.isdir(path) and not os.path.islink(path):
            yield from _find_in_folder(path, recursive)
            found += 1
        elif name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)):
            yield _file(path)
            found += 1
    if not found:
        advice = "" if recursive else "; --recursive looks into the folders in it"
        yield Source(folder, folder, problem=f"the folder has no images or videos{advice}")


def _find_in_list(path: str, recursive: bool) -> Iterator[Source]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise ConfigError([f"the list {one_line(path)} cannot be read: {error.strerror}"]) from error
    if any("\0" in line for line in lines):
        raise ConfigError([f"{one_line(path)} is not a list of paths: it is no text. An image has another suffix"])
    for line in lines:
        if line and not line.startswith("#"):
            beside = os.path.join(os.path.dirname(path), line)
            is_beside = not os.path.lexists(line) and "://" not in line and os.path.lexists(beside)
            yield from _find(beside if is_beside else line, recursive, in_list=True)
