"""Moves earlier results out of the way, into ``previous_run_N`` of the same folder."""

import glob
import os
import re
from collections.abc import Iterable

_PREVIOUS = "previous_run_"


def matching_files(folder: str, pattern: str) -> list[str]:
    """Return the paths in a folder whose names match a pattern of ``glob``, sorted."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def next_previous(folder: str) -> str:
    """Return the name that :func:`move_to_previous` would use next."""
    paths = matching_files(folder, f"{_PREVIOUS}*")
    numbers = [re.fullmatch(rf"{_PREVIOUS}(\d+)", os.path.basename(path)) for path in paths]
    return f"{_PREVIOUS}{max((int(number[1]) for number in numbers if number), default=0) + 1}"


def move_to_previous(folder: str, patterns: Iterable[str]) -> None:
    """Move all that matches the patterns, in their order, into a new ``previous_run_N`` inside the folder.

    Raises:
        OSError: a file cannot be moved; those before it have been.
    """
    target = os.path.join(folder, next_previous(folder))
    os.mkdir(target)
    for pattern in patterns:
        for path in matching_files(folder, pattern):
            os.rename(path, os.path.join(target, os.path.basename(path)))
