"""Boxes without pixels are those of Detectron2's mapper with pixels."""

import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

from retina_plugin import ConfigError
from retina_plugin.core.rng import seeded
from retina_plugin.data.training_boxes import map_boxes, spread

from ..engine.small import make_cfg


@pytest.fixture
def records(tmp_path, seed):
    """Images of random sizes with boxes of floats and of integers, some over the border, and groups."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(6):
        width, height = rng.integers(40, 160, 2).tolist()
        Image.new("RGB", (width, height)).save(tmp_path / f"{i}.png")
        boxes = np.concatenate([rng.uniform(-9, 60, (i, 2)), rng.uniform(1, 70, (i, 2))], axis=1).tolist()
        boxes += rng.integers(0, 40, (3, 4)).tolist()
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": int(k), "iscrowd": int(k == 2)}
            for box, k in zip(boxes, rng.integers(0, 3, len(boxes)))
        ]
        made.append({"file_name": str(tmp_path / f"{i}.png"), "width": width, "height": height})
        made[-1]["annotations"] = annotations
    return made


@pytest.mark.parametrize(
    "opts",
    [
        ("INPUT.MIN_SIZE_TRAIN", (50, 190), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MAX_SIZE_TRAIN", 170),
        ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative_range", "INPUT.RANDOM_FLIP", "vertical"),
        ("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none"),
    ],
)
def test_boxes_are_those_of_the_mapper(records, seed, opts):
    cfg = make_cfg(*opts)
    mapper, state = DatasetMapper(cfg, True), repr((random.getstate(), np.random.get_state(), torch.get_rng_state()))
    mapped = list(map_boxes(cfg, records, seed))
    assert repr((random.getstate(), np.random.get_state(), torch.get_rng_state())) == state
    assert sum(map(len, mapped)) > 5
    for number, (record, ours) in enumerate(zip(records, mapped)):
        with seeded(seed, number):
            theirs = mapper(record)["instances"]
        assert ours.image_size == theirs.image_size
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)
        assert len(ours.gt_areas) == len(ours)


def test_areas_are_those_in_the_file(records):
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none")
    for record in records:
        for annotation in record["annotations"]:
            annotation.update(bbox=[3.0, 4.0, 9.0, 11.0], iscrowd=0)
        assert set(next(map_boxes(cfg, [record])).gt_areas.tolist()) == {99.0}
        size = record["height"], record.pop("width")  # then the file is asked
        assert next(map_boxes(cfg, [record])).image_size == size


def test_annotations_that_no_training_takes_are_a_line(records):
    del records[1]["annotations"][0]["category_id"]
    records[1]["annotations"][0]["iscrowd"] = 0
    with pytest.raises(ConfigError, match=r"1.png cannot be used: KeyError: 'category_id'. `python -m .* check-data"):
        list(map_boxes(make_cfg(), records))


def test_images_are_spread_over_all():
    assert spread(range(9), 3) == [0, 4, 8] and spread(range(2), 3) == [0, 1] and spread(range(4), 0) == [0, 1, 2, 3]
