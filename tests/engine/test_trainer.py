"""The trainer: classes that are known only once a data set is loaded, its state, and tiles."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from retina_plugin import ConfigError, add_retina_config, check_config, merge_config
from retina_plugin.core.errors import FileError
from retina_plugin.data.tiles import tile_records
from retina_plugin.engine import RetinaTrainer, evaluate
from retina_plugin.engine.hooks.validation_loss import ValidationLoss

from .conftest import write_coco

CATEGORIES = [{"id": i, "name": name} for i, name in ((3, "cat"), (7, "dog"), (9, "cow"))]


@pytest.fixture
def pets(tmp_path):
    register_coco_instances("pets", {}, *map(str, write_coco(tmp_path, "pets", 3, CATEGORIES)))
    yield "pets"
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")


@pytest.fixture
def cfg(pets, request, tmp_path):
    cfg = get_cfg()
    add_retina_config(cfg)
    config = str(request.config.rootpath / "configs" / "Base-RetinaNet.yaml")
    merge_config(cfg, config, ["DATASETS.TRAIN", (pets,), "DATASETS.TEST", (pets,), "MODEL.DEVICE", "cpu"])
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def test_a_run_of_detectron2_0_6_is_resumed_with_a_warning(cfg, caplog):
    """Its checkpoints have the iteration, and no optimizer."""
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.SOLVER.IMS_PER_BATCH = 1
    trainer = RetinaTrainer(cfg)
    state = trainer.state_dict()
    momentum = next(iter(trainer.model.head.parameters()))
    trainer.optimizer.state[momentum]["momentum_buffer"] = torch.ones_like(momentum)
    saved = trainer.state_dict()
    assert saved["_trainer"]["optimizer"]["state"] and not state["_trainer"]["optimizer"]["state"]
    del state["_trainer"]
    with caplog.at_level(logging.WARNING, logger="retina_plugin"):
        trainer.load_state_dict({**state, "iteration": 41})
    assert trainer.iter == 41 and "no optimizer state" in caplog.text


def test_a_run_resumed_with_more_state_than_the_checkpoint_has(cfg):
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.SOLVER.IMS_PER_BATCH = 1
    trainer = RetinaTrainer(cfg)
    state = trainer.state_dict()
    learning_rate = state["_trainer"].pop("optimizer")["param_groups"][0]["lr"]
    trainer.load_state_dict({**state, "iteration": 7})
    assert trainer.iter == 7 and trainer.optimizer.param_groups[0]["lr"] == learning_rate


def test_gradients_are_dropped_before_forward_needs_memory(cfg):
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    trainer, alive = RetinaTrainer(cfg), []

    def count_gradients(model, *_):
        alive.append(sum(p.grad is not None for p in model.parameters()))

    trainer.model.register_forward_pre_hook(count_gradients)
    with EventStorage() as trainer.storage:
        for _ in range(2):
            trainer.run_step()
            count_gradients(trainer.model)
    before_first, after_first, before_second, after_second = alive
    assert before_first == before_second == 0 and after_first == after_second > 50


@pytest.mark.parametrize("loader", ["train", "test"])
def test_class_count_is_checked_when_the_data_is_loaded(cfg, pets, loader):
    def build():
        if loader == "train":
            return RetinaTrainer.build_train_loader(cfg)
        return RetinaTrainer.build_test_loader(cfg, pets)

    with pytest.raises(ConfigError, match="'pets' has 3 classes"):
        check_config(cfg)  # which reads them from the file
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 80, but data set 'pets' has 3 classes \(cat, dog, cow\)"):
        build()
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    build()


@pytest.fixture
def detector(cfg, tmp_path):
    """A configuration whose weights find many objects."""
    narrow = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16]
    head = ["MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    cfg.merge_from_list([*narrow, *head, "INPUT.MIN_SIZE_TEST", 64, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")])
    model = RetinaTrainer.build_model(cfg)
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.5)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    return cfg


def detections(cfg, size):
    cfg = cfg.clone()
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = size, 20
    cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}_{size}"
    evaluate(cfg)
    return json.loads(Path(cfg.OUTPUT_DIR, "inference", "coco_instances_results.json").read_text())


def test_an_evaluation_in_tiles(detector):
    """Images are up to 99 pixels long."""
    whole = detections(detector, 0)
    assert len(whole) > 50
    assert detections(detector, 100) == whole
    in_tiles = detections(detector, 50)
    assert len(in_tiles) > 50 and in_tiles != whole


def test_an_evaluation_in_tiles_of_an_image_that_is_cut_off(detector):
    detector.TEST.TILE.SIZE = 110
    path = Path(DatasetCatalog.get("pets")[2]["file_name"])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FileError, match="truncated.*an evaluation needs every image"):  # before the model is built
        evaluate(detector)


def test_the_validation_loss_in_tiles_is_that_of_images_that_are_tiles(detector, tmp_path):
    tiles, boxes = [], []
    for record in tile_records(DatasetCatalog.get("pets"), 60, 20):
        x0, y0, x1, y1 = record.get("tile", (0, 0, record["width"], record["height"]))
        name = f"tile_{len(tiles)}.png"
        Image.open(record["file_name"]).crop((x0, y0, x1, y1)).save(tmp_path / name)
        tiles.append({"id": len(tiles), "file_name": name, "width": x1 - x0, "height": y1 - y0})
        for a in record["annotations"]:
            x0, y0, x1, y1 = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1, "iscrowd": a["iscrowd"]}
            boxes.append({"id": len(boxes), "image_id": len(tiles) - 1, "category_id": a["category_id"], **box})
    categories = [{"id": k, "name": name} for k, name in enumerate(("cat", "dog", "cow"))]
    (tmp_path / "tiles.json").write_text(json.dumps({"images": tiles, "annotations": boxes, "categories": categories}))
    register_coco_instances("tiles", {}, str(tmp_path / "tiles.json"), str(tmp_path))
    model = RetinaTrainer.build_model(detector)
    detector.TEST.TILE.SIZE, detector.TEST.TILE.OVERLAP = 60, 20
    in_tiles = ValidationLoss(detector, model)()
    detector.TEST.TILE.SIZE, detector.DATASETS.TEST = 0, ("tiles",)
    try:
        assert len(tiles) > 6
        assert ValidationLoss(detector, model)() == in_tiles
    finally:
        DatasetCatalog.remove("tiles")
        MetadataCatalog.remove("tiles")


def test_a_training_on_tiles(cfg):
    opts = ["MODEL.RETINANET.NUM_CLASSES", 3, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 0]
    narrow = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16]
    cfg.merge_from_list([*opts, *narrow, "INPUT.TILE.SIZE", 50, "INPUT.TILE.OVERLAP", 20, "DATASETS.TEST", ()])
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    check_config(cfg)
    trainer = RetinaTrainer(cfg)
    assert trainer.data_loader.num_images > 6
    trainer.train()
    assert trainer.iter == 2
