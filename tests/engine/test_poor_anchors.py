"""A training whose anchors cover its boxes poorly says so at its start, in a line."""

import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin.data.loader import build_resumable_train_loader
from retina_plugin.engine import RetinaTrainer
from retina_plugin.engine.poor_anchors import warn_of_poor_anchors

from .small import make_cfg
from .tiny import tiny_config


@pytest.fixture(autouse=True)
def registered():
    """Removes the data sets that a test registers."""
    before = {*DatasetCatalog.list()}
    yield
    for name in {*DatasetCatalog.list()} - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def loader_of(tmp_path):
    """loader_of(side, overrides) -> a configuration and its loader, of images with boxes of this side."""

    def build(side, *opts):
        boxes = [{"bbox": [16.0 * i, 16.0 * i, side, side], "bbox_mode": 1, "category_id": 0} for i in range(5)]
        record = {"file_name": "none.png", "width": 120, "height": 120, "annotations": boxes}
        DatasetCatalog.register("squares", lambda: [{**record, "image_id": i} for i in range(9)])
        MetadataCatalog.get("squares").thing_classes = ["a", "b", "c"]
        size = ("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none", "OUTPUT_DIR", str(tmp_path / "out"))
        cfg = make_cfg("DATASETS.TRAIN", ("squares",), "SOLVER.IMS_PER_BATCH", 2, *size, *opts)
        return cfg, build_resumable_train_loader(cfg)

    return build


@pytest.mark.parametrize("side, poor", [(7.5, True), (32.0, False)])
def test_a_warning_names_the_share_and_the_command(loader_of, side, poor, caplog):
    cfg, loader = loader_of(side)
    warn_of_poor_anchors(cfg, RetinaTrainer.build_model(cfg), loader)
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "no anchor" in r.getMessage()]
    assert len(lines) == poor
    if poor:
        assert lines[0].startswith("100 % of the boxes in 9 training images have no anchor with an IoU of 0.5 or more")
        assert f"anchors check --config-file {cfg.OUTPUT_DIR}/config.yaml`" in lines[0]


def test_a_training_warns(tmp_path, caplog):
    """Boxes of at most 30 pixels, and anchors from 512 on."""
    sizes = [[512.0]] * 5
    cfg = tiny_config(tmp_path, "MODEL.ANCHOR_GENERATOR.SIZES", sizes, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
    RetinaTrainer(cfg).train()
    assert sum("training images have no anchor with an IoU" in r.getMessage() for r in caplog.records) == 1
