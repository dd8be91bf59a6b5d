"""Finds the local file that ``MODEL.WEIGHTS`` names."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from detectron2.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common.file_io import get_cache_dir

from retina_plugin.core.errors import CheckpointError, FileError
from retina_plugin.core.files import require_regular_file
from retina_plugin.core.text import did_you_mean, list_some

_PACKAGE = "package:"
_SUFFIXES = (".pth", ".pkl", ".safetensors")

_QUERY = re.compile(r"(?P<path>.+)[?&]matching_heuristics=(?P<value>[^&?]*)", re.DOTALL)


def split_query(path: str | os.PathLike) -> tuple[str, bool]:
    """Split ``?matching_heuristics=True``, as Detectron2 takes it at the end of a path or an address, from the rest.

    Raises:
        CheckpointError: its value is neither True nor False.
    """
    path = os.fspath(path)
    query = _QUERY.fullmatch(path)
    if query is None or os.path.lexists(path):
        return path, False
    if query["value"] not in ("True", "False"):
        raise CheckpointError(f"weights {path}: matching_heuristics is True or False, not {query['value']!a}")
    return query["path"], query["value"] == "True"


def resolve_weights(path: str | os.PathLike, path_manager: Any | None = None) -> str:
    """Return the local file of a path or an address; download it unless the cache has it.

    Args:
        path: a path, or an address that Detectron2's ``PathManager`` handles: ``detectron2://``, ``catalog://``,
            ``https://`` and those that a project has registered; or ``package:NAME``, the one file of weights in an
            installed Python package.
        path_manager: fetches addresses; None for Detectron2's ``PathManager``.

    Raises:
        CheckpointError: the file is missing, a folder or no regular file, or the address cannot be fetched. The message
            then names the place in the cache for a file that was fetched in another way.
    """
    path = os.fspath(path)
    file = _fetch(path, path_manager or PathManager) if "://" in path else path
    if path.startswith(_PACKAGE):
        file = _file_of_package(path)
    if os.path.isdir(file):
        found = [name for name in _names_in(file) if name.endswith(_SUFFIXES)]
        hint = f"Name a file in it: {', '.join(found[:5])}" if found else "It has no .pth, .pkl or .safetensors file"
        raise CheckpointError(f"weights {path}: this is a folder. {hint}")
    try:
        require_regular_file(file)
    except FileError as error:
        raise CheckpointError(f"weights {error}") from error
    except PermissionError as error:
        raise CheckpointError(f"weights {path}: they cannot be read ({error})") from error
    except (OSError, ValueError):  # a name that no file can have
        folder, name = os.path.split(os.path.abspath(file))
        missing = f" There is no folder {folder} either."
        hint = did_you_mean(name, _names_in(folder)) if os.path.isdir(folder) else missing
        raise CheckpointError(f"weights {path}: there is no such file.{hint}") from None
    return file


def _file_of_package(path: str) -> str:
    """Find the file of weights of an installed package, none of whose code is run."""
    name = path.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"weights {path}: there is no package '{name}' here. Install it, or name a file")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in _SUFFIXES]
    if len(files) != 1:
        found = f"{len(files)} files of weights: {list_some(files, 5)}. Name one" if files else "no file of weights"
        raise CheckpointError(f"weights {path}: the package has {found}")
    return str(files[0])


def cached_file(address: str) -> str | None:
    """Return the place of an address in Detectron2's cache; None for addresses that Detectron2 does not cache."""
    url = _url(address)
    if not url.startswith(("http://", "https://", "ftp://")):
        return None
    folder = os.path.dirname(urlparse(url).path.lstrip("/"))
    return os.path.join(get_cache_dir(), folder, url.split("/")[-1])


def _names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _url(address: str) -> str:
    """The web address behind Detectron2's own ones."""
    if address.startswith(ModelCatalogHandler.PREFIX):
        address = ModelCatalog.get(address[len(ModelCatalogHandler.PREFIX) :])
    if address.startswith(Detectron2Handler.PREFIX):
        address = Detectron2Handler.S3_DETECTRON2_PREFIX + address[len(Detectron2Handler.PREFIX) :]
    return address


def _fetch(address: str, path_manager: Any) -> str:
    try:
        cached = cached_file(address)
    except (KeyError, RuntimeError):
        raise CheckpointError(f"weights {address}: Detectron2's catalog has no model of this name") from None
    try:
        return path_manager.get_local_path(address)
    except Exception as error:  # of any handler, also of other projects
        hint = "Set MODEL.WEIGHTS to a local file"
        if cached is not None:
            hint = (
                f"Without a connection, get {_url(address)} in another way and put it at {cached}, where Detectron2 "
                "looks for it, or set MODEL.WEIGHTS to the path of the file"
            )
        raise CheckpointError(f"weights {address}: they cannot be fetched ({error}). {hint}") from error
