"""Training on data sets as they are: files that cannot be read, images without a box, and steps that repeat."""

import json
import os
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from retina_plugin.core.errors import TrainingDataError
from retina_plugin.engine import RetinaTrainer

from .tiny import tiny_config


@pytest.fixture
def config(tmp_path):
    yield lambda *opts: tiny_config(tmp_path, "DATASETS.TEST", (), *opts)
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")


def images(folder):
    return sorted((folder / "pets").glob("*.jpg"))


def test_an_unreadable_image_is_counted_in_the_metrics(config, tmp_path):
    cfg = config("DATALOADER.ASPECT_RATIO_GROUPING", False)  # 12 places of an order of 11 images: all are read
    for path in images(tmp_path)[:2]:
        path.write_bytes(b"")
    trainer = RetinaTrainer(cfg)
    trainer.train()
    seen = trainer.storage.histories()["unreadable_images"].values()
    assert seen[-1][0] == 2 and {value for value, _ in seen} <= {1, 2}
    last = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert last["unreadable_images"] <= 2 and last["iteration"] == 5


def test_too_many_unreadable_images_stop_the_training_with_a_checkpoint(config, tmp_path):
    cfg = config("DATALOADER.MAX_UNREADABLE", 2, "SOLVER.MAX_ITER", 50)
    for path in images(tmp_path)[:5]:
        path.write_bytes(b"")
    trainer = RetinaTrainer(cfg)
    with pytest.raises(TrainingDataError, match="different training images .* allows 2:\n  .*jpg"):
        trainer.train()
    done = trainer.iter + 1
    assert (tmp_path / "out" / "last_checkpoint").read_text() == f"model_{trainer.iter:07d}.pth"
    cfg.DATALOADER.MAX_UNREADABLE = 5
    resumed = RetinaTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == done < 15 and len(resumed.data_loader.unreadable) > 2


def test_a_wrong_folder_of_images_ends_the_training_at_once(config, tmp_path):
    cfg = config()
    (tmp_path / "pets").rename(tmp_path / "moved")
    trainer = RetinaTrainer(cfg)
    with pytest.raises(TrainingDataError, match="none of the first .* training images could be read"):
        trainer.train()
    (tmp_path / "moved").rename(tmp_path / "pets")
    assert trainer.iter == 0 and not os.path.exists(tmp_path / "out" / "last_checkpoint")


def test_pictures_without_boxes_teach_what_is_none(config, tmp_path):
    cfg = config("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SOLVER.IMS_PER_BATCH", 11)
    path = tmp_path / "annotations" / "instances_pets.json"
    coco = json.loads(path.read_text())
    empty = {image["id"] for image in coco["images"][:6]}
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] not in empty]
    path.write_text(json.dumps(coco))
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    trainer = RetinaTrainer(cfg)
    batch = next(trainer.data_loader)
    assert sorted(x["image_id"] for x in batch if len(x["instances"]) == 0) == sorted(empty)
    alone = [x for x in batch if x["image_id"] in empty]
    with EventStorage():
        losses = trainer.model(alone)
    assert losses["loss_cls"] > 0 and losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    gradient = trainer.model.head.cls_score.bias.grad
    assert (gradient > 0).all(), "every class of every anchor becomes less likely"
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert RetinaTrainer.build_train_loader(cfg).num_images == 5


def test_random_numbers_of_an_iteration_follow_from_the_run_and_the_iteration(config):
    trainer = RetinaTrainer(config())
    trainer._seed = 7
    trainer._hooks.clear()  # those that measure time do not take part
    trainer.storage = EventStorage()

    def drawn(iteration):
        trainer.iter = iteration
        trainer.before_step()
        return random.random(), np.random.rand(), torch.rand(()).item()

    first, second = drawn(3), drawn(4)
    assert first != second and len({*first, *second}) == 6
    assert drawn(3) == first
    trainer._seed = 8
    assert drawn(3) != first
