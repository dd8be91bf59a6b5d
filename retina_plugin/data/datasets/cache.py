"""Where the plugin's own data sets are built, and how: when first loaded, and whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json


def cache_folder() -> Path:
    """Return ``$RETINA_PLUGIN_CACHE``, by default ``~/.cache/retina_plugin``."""
    return Path(os.environ.get("RETINA_PLUGIN_CACHE") or "~/.cache/retina_plugin").expanduser().absolute()


def register_parts(
    prefix: str, root: Path, parts: Sequence[str], classes: Sequence[str], build: Callable[[Path], object]
) -> None:
    """Register the parts of a set with Detectron2, each as PREFIX_PART; the set is built when one is first loaded.

    Args:
        root: folder of the set, with ``PART.json`` in COCO's format and a folder ``PART`` of images.
        classes: names in the order of the labels.
        build: writes the set into ``root``, unless it exists.
    """
    for part in parts:
        name, json_file, image_root = f"{prefix}_{part}", str(root / f"{part}.json"), str(root / part)
        DatasetCatalog.register(name, partial(_load, name, json_file, image_root, partial(build, root)))
        MetadataCatalog.get(name).set(evaluator_type="coco", thing_classes=classes)


def _load(name: str, json_file: str, image_root: str, build: Callable[[], object]) -> list[dict]:
    build()
    metadata = MetadataCatalog.get(name)
    # Only now, so that paths in the metadata exist. An evaluator that was built before has named a file of its own.
    if metadata.get("json_file") is None:
        metadata.set(json_file=json_file, image_root=image_root)
    return load_coco_json(json_file, image_root, name)


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
