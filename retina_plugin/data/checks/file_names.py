"""Finds the files that other spellings of their names mean: slashes, case, accents, URL encoding, other folders."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class OtherName(NamedTuple):
    """What a folder has for a name that leads to no file."""

    name: str | None  # of the only file that it can mean, relative to the folder
    is_same_path: bool = False  # whether only the spelling differs, and not the folder
    near: tuple[str, ...] = ()  # files of a similar name, if ``name`` is None


def find_other_names(folder: str, names: Iterable[str], taken: Iterable[str], *, deep: bool) -> dict[str, OtherName]:
    """Find the files of a folder that names without a file can mean.

    Two names never mean one file, nor does a name mean a file that is ``taken``: one of them would be wrong.

    Args:
        folder: of the images.
        names: relative to the folder, of no file there.
        taken: paths of files that have their right name.
        deep: whether to look into its subfolders.
    """
    by_stem: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for file in _files(folder, deep):
        if parts := _parts(file):
            by_stem.setdefault(_stem(parts), []).append((parts, file))
    used = {os.path.normpath(path) for path in taken}
    found = {name: _find(name, by_stem) for name in names}
    meant = Counter(other.name for other in found.values())
    for name, other in found.items():
        if other.name and (meant[other.name] > 1 or os.path.normpath(os.path.join(folder, other.name)) in used):
            found[name] = OtherName(None, near=(f"{other.name}, which another entry means",))
    return found


def _find(name: str, by_stem: dict[str, list[tuple[tuple[str, ...], str]]]) -> OtherName:
    parts, as_written = _parts(name), re.split(r"[/\\]", name)

    def rank(file: tuple[tuple[str, ...], str]) -> tuple[bool, int, int]:
        other, path = file
        return other == parts, _common_end(other, parts), _common_end(path.split("/"), as_written)

    similar = sorted(by_stem.get(_stem(parts), []) if parts else [], key=rank, reverse=True)
    same = [(rank(file), file[1]) for file in similar if file[0][-1] == parts[-1]]
    if not same:  # but for the suffix
        return OtherName(None, near=tuple(path for _, path in similar))
    (is_same_path, common, _), path = same[0]
    # If several files have the name, the folder must tell which is meant.
    if len(same) > 1 and (same[0][0] == same[1][0] or not (is_same_path or common > 1)):
        return OtherName(None, near=tuple(path for _, path in same))
    return OtherName(path, is_same_path)


def _files(folder: str, deep: bool) -> Iterator[str]:
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or not deep:  # links may form a circle
            folders.clear()
        if real not in seen:
            relative = os.path.relpath(parent, folder)
            yield from (file if relative == os.curdir else f"{relative}/{file}" for file in files)
        seen.add(real)


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path; equal for all spellings of one."""
    path = urlsplit(name).path if "://" in name else name
    parts: list[str] = []
    for part in re.split(r"[/\\]", unicodedata.normalize("NFC", unquote(path)).casefold()):
        if part == os.pardir:
            del parts[-1:]
        elif part.strip() not in ("", os.curdir):
            parts.append(re.sub(r"\.jpe(g?)$", ".jpg", part.strip()))
    return tuple(parts)


def _stem(parts: tuple[str, ...]) -> str:
    return os.path.splitext(parts[-1])[0]


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last parts of two paths are equal."""
    number = 0
    for x, y in zip(reversed(a), reversed(b)):
        if x != y:
            break
        number += 1
    return number
