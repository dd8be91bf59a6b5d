"""Images and COCO files on the disk, registered as data sets."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from retina_plugin import add_retina_config


@pytest.fixture
def make_images(tmp_path):
    """make_images(count) -> the dataset dicts of images that are higher, wider or as wide as high.

    The data set "images" returns this list, which a test may change before it is loaded.
    """

    def make(count):
        rng = np.random.default_rng(np.random.randint(2**31))
        dicts = []
        for i in range(count):
            width, height = (int(n) for n in rng.choice([24, 32, 40], 2))
            path = tmp_path / f"{i}.png"
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
            box = {"bbox": [2, 3, 12, 14], "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(rng.integers(3))}
            size = {"width": width, "height": height}
            dicts.append({"file_name": str(path), "image_id": i, **size, "annotations": [box]})
        DatasetCatalog.register("images", lambda: dicts)
        return dicts

    yield make
    if "images" in DatasetCatalog.list():
        DatasetCatalog.remove("images")
    if "images" in MetadataCatalog.list():
        MetadataCatalog.remove("images")


@pytest.fixture
def write(tmp_path):
    """write(text, name) -> the registered name of a file with this text."""
    names = []

    def add(text, name="written"):
        path = tmp_path / f"{name}.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        register_coco_instances(name, {}, str(path), str(tmp_path))
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.DATASETS.TRAIN = ("images",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.INPUT.MIN_SIZE_TRAIN = (20, 30, 50)
    return cfg
