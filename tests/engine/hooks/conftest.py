"""A data set with what is rare in it, and a small detector whose every kind of state could be moved."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from retina_plugin import add_retina_config, merge_config

from ..conftest import write_coco

CATEGORIES = [{"id": i, "name": name} for i, name in ((3, "cat"), (7, "dog"), (9, "cow"))]


def write_pets(folder):
    """Five images: the first has no box, the second a crowd and a box."""
    json_file, images = write_coco(folder, "pets", 5, CATEGORIES)
    coco = json.loads(json_file.read_text())
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 1]
    coco["annotations"][0]["iscrowd"] = 1
    for annotation in coco["annotations"]:  # Detectron2 cuts off what follows the point where boxes are whole numbers
        annotation["bbox"] = [float(x) for x in annotation["bbox"]]
    json_file.write_text(json.dumps(coco))
    return str(json_file), str(images)


def small_cfg(config, folder, *opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    model = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16)
    model += (
        "MODEL.RESNETS.NORM",
        "BN",
        "MODEL.FPN.NORM",
        "BN",
        "MODEL.RETINANET.NORM",
        "BN",
        "MODEL.BACKBONE.FREEZE_AT",
        0,
    )
    model += ("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.PIXEL_STD", [58.0] * 3)
    data = ("DATASETS.TRAIN", ("pets",), "DATASETS.TEST", ("pets",), "DATALOADER.NUM_WORKERS", 0)
    size = ("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2)
    job = (
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.BASE_LR",
        1e-3,
        "OUTPUT_DIR",
        str(folder),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
        False,
    )
    merge_config(cfg, config, [*model, *data, *size, *job, *opts])
    return cfg


@pytest.fixture
def config(request):
    return str(request.config.rootpath / "configs" / "Base-RetinaNet.yaml")


@pytest.fixture
def pets(tmp_path):
    register_coco_instances("pets", {}, *write_pets(tmp_path))
    yield tmp_path
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")
