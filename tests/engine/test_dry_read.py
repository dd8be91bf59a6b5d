"""What is wrong with all training images is told before the first step."""

import os
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin import ConfigError
from retina_plugin.engine import RetinaTrainer
from retina_plugin.engine.dry_read import dry_read

from .tiny import tiny_config


@pytest.fixture
def dicts(tmp_path):
    """dicts(change of an annotation, overrides) -> configuration that trains on them."""
    before = {*DatasetCatalog.list()}

    def register(change, *opts):
        cfg = tiny_config(tmp_path, "DATASETS.TRAIN", ("dicts",), "DATASETS.TEST", (), *opts)
        records = DatasetCatalog.get("pets")
        DatasetCatalog.register(
            "dicts", lambda: [{**r, "annotations": [change(dict(a)) for a in r["annotations"]]} for r in records]
        )
        MetadataCatalog.get("dicts").thing_classes = MetadataCatalog.get("pets").thing_classes
        return cfg

    yield register
    for name in {*DatasetCatalog.list()} - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def without(key):
    return lambda annotation: {name: value for name, value in annotation.items() if name != key}


@pytest.mark.parametrize(
    "change, what",
    [
        (without("bbox"), "of DATASETS.TRAIN, cannot be used: KeyError: 'bbox'. `python -m retina_plugin check-data"),
        (without("category_id"), "cannot be used: KeyError: 'category_id'"),
        (without("bbox_mode"), "cannot be used: KeyError: 'bbox_mode'"),
        (lambda annotation: {**annotation, "category_id": 3 + np.random.randint(9)}, "but the model has classes 0..2"),
        (lambda annotation: {**annotation, "category_id": -1}, "but the model has classes 0..2"),
    ],
)
def test_annotations_that_no_training_takes(dicts, change, what):
    cfg = dicts(change)
    with pytest.raises(ConfigError) as error:
        RetinaTrainer(cfg)
    (line,) = error.value.problems
    assert what in line and "\n" not in line


def test_channels_that_the_model_does_not_have(dicts):
    with pytest.raises(ConfigError, match="'CMYK' gives images of 4 channels, but MODEL.PIXEL_MEAN and .* 3 numbers"):
        RetinaTrainer(dicts(dict, "INPUT.FORMAT", "CMYK"))


@pytest.mark.parametrize("opts", [(), ("INPUT.FORMAT", "L")])
def test_sound_images_leave_random_states_alone(dicts, opts):
    def state():
        return repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()

    cfg, before = dicts(dict, *opts), state()
    dry_read(cfg, DatasetCatalog.get("dicts"))
    assert state() == before


def test_unreadable_images_are_left_to_the_training(dicts, tmp_path):
    cfg = dicts(dict)
    sorted((tmp_path / "pets").iterdir())[0].write_bytes(b"")
    dry_read(cfg, DatasetCatalog.get("dicts"))


def test_a_pipe_among_the_images_is_left_to_the_training_and_not_opened(dicts, tmp_path):
    cfg = dicts(dict)
    os.mkfifo(tmp_path / "pipe.png")
    records = [{**record, "file_name": str(tmp_path / "pipe.png")} for record in DatasetCatalog.get("dicts")]
    dry_read(cfg, records)  # would wait for ever


def test_items_that_are_not_dicts_are_told_by_their_number(dicts):
    with pytest.raises(ConfigError, match="the annotations of image 0, of DATASETS.TRAIN, cannot be used"):
        dry_read(dicts(dict), [("a.png", 3)])
