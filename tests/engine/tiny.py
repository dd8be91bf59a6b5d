"""The smallest RetinaNet that trains in a moment, on images made here."""

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

from ..checkpoint.conftest import small_config
from .conftest import write_coco

CATEGORIES = [{"id": 10 + i, "name": name} for i, name in enumerate(("cat", "dog", "cow"))]


def write_pets(folder):
    """Write the images of the data set "pets" unless they are there."""
    if not (folder / "pets").is_dir():
        write_coco(folder, "pets", 11, CATEGORIES)
    return folder / "annotations" / "instances_pets.json", folder / "pets"


def tiny_config(folder, *opts):
    """Six iterations with two images each, an evaluation after three; registers the data set "pets"."""
    if "pets" not in DatasetCatalog.list():
        register_coco_instances("pets", {}, *map(str, write_pets(folder)))
    tiny = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4)
    more = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.RETINANET.NUM_CLASSES", 3)
    data = ("DATASETS.TRAIN", ("pets",), "DATASETS.TEST", ("pets",), "DATALOADER.NUM_WORKERS", 0)
    size = ("INPUT.MIN_SIZE_TRAIN", (32, 48), "INPUT.MIN_SIZE_TEST", 32, "SOLVER.IMS_PER_BATCH", 2)
    run = ("SOLVER.MAX_ITER", 6, "SOLVER.BASE_LR", 1e-3, "TEST.EVAL_PERIOD", 3, "OUTPUT_DIR", str(folder / "out"))
    return small_config(*tiny, *more, *data, *size, *run, *opts)
