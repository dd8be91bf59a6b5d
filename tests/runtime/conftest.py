"""A run's folder with a small detector of random weights, and a data set of images that are stored in several ways."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from retina_plugin.checkpoint import RetinaCheckpointer

from ..checkpoint.conftest import small_config

CLASSES = ["cat", "dog", "cow"]
CATEGORIES = [{"id": 10 * i + 7, "name": name} for i, name in enumerate(CLASSES)]
ORIENTATION = 274


def pixels(height, width, channels=3):
    return np.random.randint(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def exif(orientation):
    values = Image.Exif()
    values[ORIENTATION] = orientation
    return values


def write_images(folder):
    """Seven images as JPEG and PNG; returns name -> (width, height) as they are seen."""
    folder.mkdir()
    Image.fromarray(pixels(60, 90)).save(folder / "a.jpg")
    Image.fromarray(pixels(60, 90)).save(folder / "b.jpg", exif=exif(6))
    Image.fromarray(pixels(70, 50, 1)).save(folder / "c.png")
    Image.fromarray(pixels(50, 75, 4)).save(folder / "d.png")
    Image.fromarray(pixels(64, 64)).quantize(32).save(folder / "e.png")
    Image.fromarray(pixels(60, 90)).convert("CMYK").save(folder / "f.jpg")
    Image.fromarray(pixels(40, 60)).save(folder / "g.png")
    return {"a.jpg": (90, 60), "b.jpg": (60, 90), "c.png": (50, 70), "d.png": (75, 50), "e.png": (64, 64)} | {
        "f.jpg": (90, 60),
        "g.png": (60, 40),
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder ``images`` and its COCO file ``set.json``; the same in every run, as the weights of ``run_folder``."""
    np.random.seed(0)
    root = tmp_path_factory.mktemp("photos")
    images = [
        {"id": 100 - i, "file_name": name, "width": width, "height": height}
        for i, (name, (width, height)) in enumerate(write_images(root / "images").items())
    ]
    annotation = {"id": 1, "image_id": 100, "category_id": 7, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    coco = {"info": {}, "images": images, "annotations": [annotation], "categories": CATEGORIES}
    (root / "set.json").write_text(json.dumps(coco))
    return root


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """What a training leaves behind. Scores lie between 0.05 and 1; with other weights, all may be low."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    cfg = small_config(
        *("MODEL.RETINANET.NUM_CLASSES", 3, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "OUTPUT_DIR", "gone"),
        *("MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", 0, "TEST.DETECTIONS_PER_IMAGE", 20, "MODEL.DEVICE", "cpu"),
    )
    model = build_model(cfg)
    with torch.no_grad():
        model.head.cls_score.weight.mul_(30)
        model.head.cls_score.bias.fill_(-1)
        model.head.bbox_pred.weight.mul_(10)
    RetinaCheckpointer(model, str(folder), class_names=CLASSES).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder
