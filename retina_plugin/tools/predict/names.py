"""Names of the files that are made of images and videos, in the folders of the originals."""

import os
import re
from collections.abc import Iterable, Sequence

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import one_line
from retina_plugin.runtime.inputs import Source

_KEPT = (".jpg", ".jpeg", ".png")


def annotated_names(sources: Sequence[Source]) -> list[str]:
    """Return a relative path for the annotated copy of each source, no two alike.

    JPEG and PNG files keep their names; other images get ``.jpg`` added, videos and streams ``.mp4``.
    """
    names, taken = _relative_names(sources), set[str]()
    for i, source in enumerate(sources):
        added = ".jpg" if source.kind == "image" else ".mp4"
        kept = _KEPT if source.kind == "image" else (".mp4",)
        stem, suffix = os.path.splitext(names[i])
        if suffix.lower() not in kept:
            stem, suffix = names[i], added
        name, number = f"{stem}{suffix}", 1
        while name.lower() in taken:  # the same file twice, or a.tif beside a.tif.jpg
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name.lower())
        names[i] = name
    return names


def label_names(sources: Sequence[Source], suffix: str) -> list[str]:
    """Return a relative path for the labels of each image: that of the image with another suffix.

    Raises:
        ConfigError: a source is a video, or two images would have the same labels.
    """
    names, owner = [], dict[str, str]()
    for source, relative in zip(sources, _relative_names(sources)):
        if source.kind != "image":
            raise ConfigError([f"--format labels image files, and {one_line(source.name)} is a video: save its frames"])
        name = os.path.splitext(relative)[0] + suffix
        if other := owner.get(name):
            both = f"{one_line(other)} and {one_line(source.name)}"
            raise ConfigError([f"{both} would have the same labels, {one_line(name)}: rename one, or leave one out"])
        owner[name] = source.name
        names.append(name)
    return names


def _relative_names(sources: Sequence[Source]) -> list[str]:
    """The paths below the folder that all of them are in."""
    paths = [os.path.abspath(source.name) for source in sources if source.kind != "stream"]
    folder = _common_folder(paths)
    found = iter(paths)
    return [
        re.sub(r"\W+", "_", f"camera_{source.name}" if source.name.isdecimal() else source.name)
        if source.kind == "stream"
        else os.path.relpath(next(found), folder)
        for source in sources
    ]


def _common_folder(paths: Iterable[str]) -> str:
    folders = {os.path.dirname(path) for path in paths}
    return os.path.commonpath(folders) if folders else "."
