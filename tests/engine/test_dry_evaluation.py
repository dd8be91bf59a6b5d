"""What fails in an evaluation fails before the training, whose numbers stay the same."""

import json
import os
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import DatasetEvaluator

from retina_plugin import CheckpointError, ConfigError
from retina_plugin.core.errors import FileError
from retina_plugin.engine import RetinaTrainer, evaluate
from retina_plugin.engine.dry_evaluation import dry_evaluate
from retina_plugin.evaluation import BoxEvaluator

from .tiny import tiny_config, write_pets


@pytest.fixture
def pets(tmp_path):
    """A registered COCO set, its file and folder; forgets all data sets of the test."""
    before = {*DatasetCatalog.list()}
    cfg = tiny_config(tmp_path)
    yield cfg, *write_pets(tmp_path)
    for name in {*DatasetCatalog.list()} - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def register_dicts(change=lambda record: record, name="dicts"):
    """The images of "pets" as dicts without a file, each changed by a function."""
    records = [
        change({**record, "annotations": [dict(a) for a in record["annotations"]]})
        for record in DatasetCatalog.get("pets")
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = MetadataCatalog.get("pets").thing_classes
    return records


def check(cfg, *test_sets, trainer=RetinaTrainer):
    cfg.DATASETS.TEST = test_sets
    dry_evaluate(cfg, trainer, RetinaTrainer)


def problem(cfg, *test_sets, trainer=RetinaTrainer):
    with pytest.raises(ConfigError) as error:
        check(cfg, *test_sets, trainer=trainer)
    (line,) = error.value.problems
    return line


def without(key):
    return lambda record: {name: value for name, value in record.items() if name != key}


def test_sound_sets_leave_no_trace(pets, tmp_path, seed):
    cfg, *_ = pets
    register_dicts()

    def state():
        return repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()

    before, sets = state(), DatasetCatalog.list()
    check(cfg, "pets", "dicts")
    assert state() == before and DatasetCatalog.list() == sets
    assert not (tmp_path / "out").exists()
    assert "json_file" not in MetadataCatalog.get("dicts").as_dict()


@pytest.mark.parametrize("number", [np.int64, np.float32, torch.tensor])
def test_ids_of_other_number_types_are_sound(pets, number):
    register_dicts(lambda record: {**record, "image_id": number(record["image_id"])})
    check(pets[0], "dicts")


@pytest.mark.parametrize(
    "change, what",
    [
        (without("image_id"), "no image_id in dict 0 of 11"),
        (lambda record: {**record, "image_id": (1, record["image_id"])}, "an image_id of type tuple in dict 0"),
        (lambda record: {**record, "image_id": 7}, "has 11 images with image_id 7: give each image its own"),
        (lambda record: {**record, "file_name": record["file_name"] + ".png"}, "lacks 11 of 11 image files"),
        (without("file_name"), "lacks 11 of 11 image files"),
        (without("height"), "cannot be evaluated, which would end the job after all else: KeyError: 'height'"),
    ],
)
def test_dicts_that_no_evaluation_takes(pets, change, what):
    register_dicts(change)
    line = problem(pets[0], "pets", "dicts")
    assert line.startswith("data set 'dicts' of DATASETS.TEST") and what in line


def test_one_dict_of_many_without_an_id(pets):
    register_dicts()[6].pop("image_id")
    assert "no image_id in dict 6 of 11" in problem(pets[0], "dicts")


def test_a_missing_image_is_named(pets):
    images = sorted(pets[2].iterdir())
    images[4].unlink()
    assert f"lacks 1 of 11 image files, so that no evaluation of it would end: {images[4]}" in problem(pets[0], "pets")


def test_an_image_that_is_not_one(pets):
    image = sorted(pets[2].iterdir())[0]
    image.write_text("<html>")
    with pytest.raises(FileError, match="cannot be read .*, and an evaluation needs every image") as error:
        check(pets[0], "pets")
    assert str(error.value).startswith(str(image))


def test_classes_that_only_loading_tells(pets):
    records = register_dicts()

    def load():
        MetadataCatalog.get("late").thing_classes = ["dog", "cat", "cow"]
        return records

    DatasetCatalog.register("late", load)
    cfg, *_ = pets
    cfg.DATASETS.TEST = ("late",)
    with pytest.raises(ConfigError, match="data sets 'pets' and 'late' have different classes: label 0 is 'cat'"):
        RetinaTrainer(cfg).train()


def test_an_evaluation_alone_begins_with_it(pets):
    """And leaves the training sets alone, which may be of other classes."""
    cfg, *_ = pets
    register_dicts(without("image_id"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train",), ("dicts",)
    with pytest.raises(ConfigError, match="no image_id"):
        evaluate(cfg)
    cfg.DATASETS.TEST = ("pets",)
    with pytest.raises(CheckpointError, match="there are no weights to evaluate"):
        evaluate(cfg)


def test_a_file_without_info_is_evaluated(pets):
    """As annotation tools write it; some versions of pycocotools do not read results then."""
    cfg, path, root = pets
    coco = json.loads(path.read_text())
    del coco["info"]
    path.write_text(json.dumps(coco))
    check(cfg, "pets")
    assert BoxEvaluator(cfg, "pets", "")._coco_api.dataset["info"] == {}


class CountingEvaluator(DatasetEvaluator):
    """Wants all images, as one that sends its results to a server does."""

    def evaluate(self):
        raise AssertionError("not all images were processed")


class CountingTrainer(RetinaTrainer):
    built = []

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        cls.built.append((dataset_name, cfg.OUTPUT_DIR))
        if dataset_name == "other":
            raise RuntimeError("the server is down")
        return CountingEvaluator()


def test_an_evaluator_of_a_project_is_built_but_not_run(pets):
    cfg, path, root = pets
    register_coco_instances("other", {}, str(path), str(root))
    check(cfg, "pets", trainer=CountingTrainer)
    ((name, folder),) = CountingTrainer.built
    assert name == "pets" and folder != cfg.OUTPUT_DIR and not os.path.exists(folder)
    assert "after all else: RuntimeError: the server is down" in problem(cfg, "pets", "other", trainer=CountingTrainer)


class TestingTrainer(RetinaTrainer):
    __test__ = False

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return OrderedDict()


def test_an_evaluation_of_a_project_is_its_own(pets):
    register_dicts(without("image_id"))
    check(pets[0], "dicts", trainer=TestingTrainer)


def test_training_does_not_begin_and_its_numbers_stay(pets, tmp_path, monkeypatch):
    cfg, *_ = pets
    register_dicts(without("image_id"))
    bad = cfg.clone()
    bad.DATASETS.TEST = ("dicts",)
    trainer = RetinaTrainer(bad)
    with pytest.raises(ConfigError, match="no image_id"):
        trainer.train()
    assert not hasattr(trainer, "storage") and not list((tmp_path / "out").glob("*.pth"))

    def train(folder):
        run = cfg.clone()
        run.OUTPUT_DIR, run.SEED = str(tmp_path / folder), 5
        torch.manual_seed(5), np.random.seed(5)
        trainer = RetinaTrainer(run)
        trainer.train()
        return trainer.model.state_dict()

    with_check = train("with")
    monkeypatch.setattr("retina_plugin.engine.trainer.dry_evaluate", lambda *args: None)
    without_check = train("without")
    assert all(torch.equal(value, without_check[name]) for name, value in with_check.items())
