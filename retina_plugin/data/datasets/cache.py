"""Where the plugin's own data sets are built, and how: whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$RETINA_PLUGIN_CACHE``, by default ``~/.cache/retina_plugin``."""
    return Path(os.environ.get("RETINA_PLUGIN_CACHE") or "~/.cache/retina_plugin").expanduser().absolute()


def build_once(root: Path, write: Callable[[Path], object]) -> None:
    """Write a data set into the folder ``root``, unless it exists.

    It is written beside ``root`` and renamed at the end: ``root`` holds the whole set or does not exist, even if the
    process is interrupted or several processes build the set at the same time.

    Args:
        write: writes the set into an empty folder; always the same bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    if root.is_dir():
        return
    unfinished = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        try:
            unfinished.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another process was faster, and wrote the same bytes
                raise
    except OSError as error:
        raise OSError(
            f"The data set {root.name} cannot be written to {root} ({error}). Set the environment variable "
            "RETINA_PLUGIN_CACHE to a folder that can be written, with 100 MB of free space."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
