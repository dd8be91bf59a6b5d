"""Registers a COCO file and a folder of images as a data set of Detectron2."""

import itertools
import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from retina_plugin.core.errors import ConfigError


def register_coco_file(json_file: str | os.PathLike | None, image_root: str | os.PathLike | None) -> str:
    """Register a COCO file and the folder of its images, and return the name of the data set.

    The name is that of the file without its suffix, and a number behind it if another data set has this name.

    Raises:
        ConfigError: one of the two is not given.
    """
    if json_file is None or image_root is None:
        raise ConfigError(["--json FILE and --images DIR go together: the COCO file, and the folder of its images"])
    paths = {"json_file": os.fspath(json_file), "image_root": os.fspath(image_root)}
    stem = os.path.splitext(os.path.basename(paths["json_file"]))[0]
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    name = next(name for name in names if name not in DatasetCatalog or _is_registered(name, paths))
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, **paths)
    return name


def _is_registered(name: str, paths: dict[str, str]) -> bool:
    metadata = MetadataCatalog.get(name)
    return all(metadata.get(key) == path for key, path in paths.items())
