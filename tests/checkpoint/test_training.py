"""The trainer's checkpoints: what they hold, runs that are resumed and fine-tuned, and evaluations."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import HookBase, hooks

from retina_plugin import ConfigError
from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer
from retina_plugin.engine import RetinaTrainer, evaluate

from ..engine.conftest import write_coco
from .conftest import small_config

PETS = {"pets": ("cat", "dog", "cow"), "farm": ("cow", "hen", "cat", "pig"), "pets_permuted": ("dog", "cat", "cow")}


@pytest.fixture
def config(tmp_path):
    """config(data set, *opts) -> a small training on it."""
    for name, classes in PETS.items():
        categories = [{"id": 10 + i, "name": c} for i, c in enumerate(classes)]
        register_coco_instances(name, {}, *map(str, write_coco(tmp_path / name, name, 3, categories)))

    def make(name, *opts):
        data = ("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "DATALOADER.NUM_WORKERS", 0)
        size = ("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2)
        run = ("SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 1e-3, "MODEL.RETINANET.NUM_CLASSES", len(PETS[name]))
        return small_config(*data, *size, *run, "OUTPUT_DIR", str(tmp_path / "out"), "TEST.EVAL_PERIOD", 0, *opts)

    yield make
    for name in PETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


class Best(HookBase):
    """A hook with the state that hooks have: numbers of numpy."""

    def __init__(self):
        self.best = {"ap": np.float64(0), "history": [np.float32(1.5)]}

    def state_dict(self):
        return self.best

    def load_state_dict(self, state):
        self.best = state


def train(cfg, resume=False):
    trainer = RetinaTrainer(cfg)
    trainer.register_hooks([Best()])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_a_checkpoint_of_the_trainer_is_plain_and_resumes(config, tmp_path):
    trainer = train(config("pets"))
    checkpointers = [h._checkpointer if hasattr(h, "_checkpointer") else h.checkpointer for h in trainer._hooks if (
        isinstance(h, hooks.PeriodicCheckpointer)
    )]  # fmt: skip
    assert checkpointers == [trainer.checkpointer] and type(trainer.checkpointer) is RetinaCheckpointer

    file = tmp_path / "out" / "model_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["class_names"] == ["cat", "dog", "cow"] and checkpoint["iteration"] == 1
    state = checkpoint["trainer"]
    assert state["hooks"]["Best"] == {"ap": 0.0, "history": [1.5]} and state["hooks"]["LRScheduler"]["last_epoch"] == 2
    momenta = state["_trainer"]["optimizer"]["state"]
    assert any(m["momentum_buffer"].abs().sum() > 0 for m in momenta.values())

    resumed = train(config("pets", "SOLVER.MAX_ITER", 3), resume=True)
    assert resumed.start_iter == 2 and resumed.iter == 3
    assert torch.load(file, weights_only=True)["iteration"] == 2


def test_an_older_checkpoint_is_resumed(config, tmp_path):
    """As Detectron2's own checkpointer wrote it: without names of classes."""
    train(config("pets"))
    file = tmp_path / "out" / "model_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["class_names"], checkpoint["model"]["loss_normalizer.ema"]
    torch.save(checkpoint, file)
    assert train(config("pets", "SOLVER.MAX_ITER", 3), resume=True).start_iter == 2


def test_a_run_is_not_resumed_on_other_classes(config):
    train(config("pets"))
    with pytest.raises(CheckpointError, match="class 0 is 'cat' in the weights and 'dog' in the data"):
        train(config("pets_permuted"), resume=True)


def test_a_detector_is_fine_tuned_to_other_classes(config, tmp_path):
    trained = train(config("pets")).model
    weights = str(tmp_path / "out" / "model_final.pth")
    trainer = RetinaTrainer(config("farm", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "next")))
    fresh = trainer.model.head.cls_score.weight.detach().clone()
    trainer.resume_or_load(resume=False)
    rows = trainer.model.head.cls_score.weight.unflatten(0, (9, 4))
    old = trained.head.cls_score.weight.unflatten(0, (9, 3))
    assert torch.equal(rows[:, 0], old[:, 2]) and torch.equal(rows[:, 2], old[:, 0])
    assert torch.equal(rows[:, [1, 3]], fresh.unflatten(0, (9, 4))[:, [1, 3]])
    assert trainer.start_iter == 0


def test_evaluation_is_strict(config, tmp_path):
    train(config("pets"))
    weights = ("MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"))
    assert "bbox" in evaluate(config("pets", *weights))
    assert "bbox" in evaluate(config("pets"), resume=True)
    for name, message in [
        ("pets_permuted", "their 3 classes are not the 3 of the data: class 0 is 'cat' in the weights and 'dog'"),
        ("farm", "their 3 classes are not the 4 of the data: class 0 is 'cat' in the weights and 'cow' in the data"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            evaluate(config(name, *weights))
    with pytest.raises(CheckpointError, match="in the file, .* in the model"):
        evaluate(config("pets", *weights, "MODEL.FPN.OUT_CHANNELS", 64))
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty"):
        evaluate(config("pets"))


def test_data_sets_of_different_classes_are_no_data_of_one_model(config):
    with pytest.raises(
        ConfigError, match="'pets' and 'pets_permuted' have different classes: label 0 is 'cat' in one and"
    ):
        evaluate(config("pets", "DATASETS.TEST", ("pets", "pets_permuted")))
