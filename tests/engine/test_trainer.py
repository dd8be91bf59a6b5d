"""The trainer: classes that are known only once a data set is loaded, and its state."""

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.events import EventStorage

from retina_plugin import ConfigError, add_retina_config, check_config, merge_config
from retina_plugin.engine import RetinaTrainer

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
