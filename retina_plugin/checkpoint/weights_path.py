"""From what ``MODEL.WEIGHTS`` names to a file on this machine."""

import os
from urllib.parse import urlparse

from detectron2.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common.file_io import get_cache_dir

from retina_plugin.core.errors import CheckpointError
from retina_plugin.core.text import did_you_mean


def resolve_weights(path):
    """Find the file of a path or an address, and download it where needed.

    Args:
        path: a path, or an address that Detectron2's ``PathManager`` knows: ``detectron2://``, ``catalog://``,
            ``https://`` and those that a project has registered. What lies in Detectron2's cache is not
            downloaded again.

    Returns:
        str: path of a file that exists.

    Raises:
        CheckpointError: there is no such file, it is a folder, or the address cannot be fetched; then with the place
            in the cache where a file that came in another way is found.
    """
    path = os.fspath(path)
    file = _fetch(path) if "://" in path else path
    if os.path.isdir(file):
        found = [name for name in _names(file) if name.endswith((".pth", ".pkl", ".safetensors"))]
        hint = f"Name a file in it: {', '.join(found[:5])}" if found else "It has no .pth, .pkl or .safetensors file"
        raise CheckpointError(f"weights {path}: this is a folder. {hint}")
    if not os.path.isfile(file):
        folder, name = os.path.split(os.path.abspath(file))
        hint = did_you_mean(name, _names(folder)) if os.path.isdir(folder) else f" There is no folder {folder} either."
        raise CheckpointError(f"weights {path}: there is no such file.{hint}")
    return file


def cached_file(address):
    """Where Detectron2 keeps, and looks for, the file of an address. None for addresses that it keeps no files of."""
    url = _url(address)
    if not url.startswith(("http://", "https://", "ftp://")):
        return None
    folder = os.path.dirname(urlparse(url).path.lstrip("/"))
    return os.path.join(get_cache_dir(), folder, url.split("/")[-1])


def _url(address):
    """The web address behind Detectron2's own ones."""
    if address.startswith(ModelCatalogHandler.PREFIX):
        address = ModelCatalog.get(address[len(ModelCatalogHandler.PREFIX) :])
    if address.startswith(Detectron2Handler.PREFIX):
        address = Detectron2Handler.S3_DETECTRON2_PREFIX + address[len(Detectron2Handler.PREFIX) :]
    return address


def _fetch(address):
    try:
        cached = cached_file(address)
    except (KeyError, RuntimeError):
        raise CheckpointError(f"weights {address}: Detectron2's catalog has no model of this name") from None
    try:
        return PathManager.get_local_path(address)
    except Exception as error:  # of any handler, also of other projects
        hint = "Set MODEL.WEIGHTS to a local file"
        if cached is not None:
            hint = (
                f"Without a connection, get {_url(address)} in another way and put it at {cached}, where Detectron2 "
                "looks for it, or set MODEL.WEIGHTS to the path of the file"
            )
        raise CheckpointError(f"weights {address}: they cannot be fetched ({error}). {hint}") from error


def _names(folder):
    return sorted(os.listdir(folder))
