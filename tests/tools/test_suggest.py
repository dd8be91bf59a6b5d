"""A suggested configuration loads, passes all checks and trains; its numbers follow the rules in its comments."""

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from retina_plugin.__main__ import main
from retina_plugin.engine import RetinaTrainer, load_config
from retina_plugin.engine.arguments import argument_parser
from retina_plugin.tools.anchors.training_set import read_training_config
from retina_plugin.tools.suggest import rules
from retina_plugin.tools.suggest.suggest import suggest

from .anchors.sets import random_boxes, write_config, write_set


@pytest.fixture
def words(tmp_path, seed):
    """Arguments for ten images, one of them without boxes, the densest with 130."""
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(rng, 5, rng.uniform(20, 40, 5), 2.0) for _ in range(8)]
    json_file, images = write_set(tmp_path, [*boxes, [], random_boxes(rng, 130, 20.0)], num_classes=4)
    config = write_config(tmp_path, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.04, "MODEL.DEVICE", "cpu")
    return ["--json", str(json_file), "--images", str(images), "--config-file", str(config)]


def test_it_trains(words, tmp_path, capsys):
    path = tmp_path / "suggested.yaml"
    assert not main(["suggest", *words, "--output", str(path), "MODEL.FPN.OUT_CHANNELS", "8"])
    assert capsys.readouterr().out.strip() == str(path)
    opts = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = load_config(argument_parser().parse_args(["--config-file", str(path), *opts]))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 4 and cfg.MODEL.FPN.OUT_CHANNELS == 8
    assert cfg.SOLVER.IMS_PER_BATCH == cfg.SOLVER.REFERENCE_BATCH_SIZE == 4  # a power of two, without a GPU
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.01)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == cfg.TEST.AP_DETECTIONS_PER_IMAGE == 200  # 1.5 * 130, in fifties
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS is False
    assert cfg.SOLVER.MAX_ITER == 250 and list(cfg.SOLVER.STEPS) == [166, 222]  # 100 epochs of ten images
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[1] == [2 * size for size in cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]]
    trainer = RetinaTrainer(cfg)
    with EventStorage():
        trainer._trainer.iter = 0
        trainer._trainer.run_step()


def test_every_value_has_a_reason_and_what_is_given_stays(words, capsys):
    assert not main(["suggest", *words, "SOLVER.IMS_PER_BATCH", "2", "INPUT.RANDOM_FLIP", "none"])
    lines = capsys.readouterr().out.splitlines()
    values = yaml.safe_load("\n".join(lines))
    assert values["SOLVER"]["IMS_PER_BATCH"] == 2 and values["SOLVER"]["BASE_LR"] == 0.005
    assert values["SOLVER"]["MAX_ITER"] == 500 and values["INPUT"]["RANDOM_FLIP"] == "none"
    for before, line in zip(lines, lines[1:]):
        key, _, value = line.strip().partition(": ")
        if value and not key.startswith(("#", "_BASE_")):
            assert before.strip().startswith("#"), line


def test_it_says_what_is_wrong(words, tmp_path, capsys):
    assert main(["suggest"]) == 2
    assert "name a registered data set" in capsys.readouterr().err
    assert main(["suggest", *words, "--overwrite"]) == 2
    assert "--overwrite is for --output FILE" in capsys.readouterr().err
    assert main(["suggest", *words, "--output", str(tmp_path / "config.yaml"), "--overwrite"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert main(["suggest", *words, "MODEL.RETINANET.NUM_CLASES", "3"]) == 2
    assert "Did you mean MODEL.RETINANET.NUM_CLASSES?" in capsys.readouterr().err
    write_set(tmp_path, [[], []], num_classes=4)
    assert main(["suggest", *words]) == 2
    assert "none of 2 images of json_train has a box" in capsys.readouterr().err


def test_a_registered_set_has_its_test_set_and_many_empty_images_are_dropped(tmp_path, seed):
    rng, before = np.random.default_rng(seed), set(DatasetCatalog.list())
    box = {"bbox": [3.0, 3.0, 30.0, 40.0], "bbox_mode": 1, "category_id": 0}
    sized = {"file_name": "none.png", "width": 90, "height": 80}
    records = [{**sized, "image_id": i, "annotations": [box] * (i % 3 == 0)} for i in range(9)]
    for split in ("train", "val"):
        DatasetCatalog.register(f"street_{split}", lambda: records)
        MetadataCatalog.get(f"street_{split}").thing_classes = ["tram\n# x"]
    try:
        config = write_config(tmp_path)
        cfg = read_training_config("street_train", config_file=str(config))
        values = yaml.safe_load(suggest(cfg, str(config), opts=["SOLVER.IMS_PER_BATCH", int(rng.integers(1, 4))]))
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert values["DATASETS"] == {"TRAIN": ["street_train"], "TEST": ["street_val"]}
    assert values["DATALOADER"]["FILTER_EMPTY_ANNOTATIONS"] is True and values["TEST"]["EVAL_PERIOD"] > 0
    assert values["MODEL"]["RETINANET"]["NUM_CLASSES"] == 1
    assert cfg.DATASETS.TEST != ("street_val",)  # is not changed


def objects(side, short_edge, number=10):
    return rules.Objects(*(np.full(number, float(value)) for value in (side, 1.5 * side, short_edge)))


def test_sizes_follow_from_the_objects():
    assert rules.short_edge(objects(60, 600), 600) == 320  # 24 px at 240
    assert rules.short_edge(objects(24, 480), 480) == 480
    assert rules.short_edge(objects(10, 500), 500) == 800  # 24 px at 1200
    assert rules.short_edge(objects(6, 180), 180) == 384  # enlarged twice, in multiples of 32
    assert rules.train_edges(800) == [640, 672, 704, 736, 768, 800] and rules.max_size(800) == 1333
    assert rules.tiles(objects(20, 1000), 1000) is None  # 16 px at 800
    assert rules.tiles(objects(20, 4000), 4000) == (672, 32, 800)  # 4 px at 800; enlarged 1.2 times
    assert rules.tiles(objects(8, 4000), 4000) == (416, 32, 800)


def test_the_schedule_follows_from_the_number_of_images():
    assert rules.iterations(118_287, 16) == 89_000  # the model zoo has 90,000
    assert rules.epochs(118_287 // 4) == pytest.approx(24, rel=1e-3) and rules.epochs(20) == 100
    assert rules.batch_size(16, 10_000, 800 * 1333, None) == 4
    assert [rules.batch_size(16, 10_000, 800 * 1333, gib) for gib in (6, 16, 80)] == [2, 8, 16]
    assert rules.batch_size(16, 3, 800 * 1333, 80) == 2
    assert [rules.detections_per_image(densest) for densest in (3, 66, 67, 101)] == [100, 100, 150, 200]


def test_tiles_are_suggested_for_small_objects_and_the_rest_follows_from_them(tmp_path, seed):
    json_file, images = write_set(tmp_path, [[(500 + 40 * i, 700, 8, 8) for i in range(6)]] * 2, size=(3000, 2000))
    config = write_config(tmp_path)
    cfg = read_training_config(json_file=json_file, image_root=images, config_file=str(config))
    values = yaml.safe_load(suggest(cfg, str(config)))
    assert values["INPUT"]["TILE"] == values["TEST"]["TILE"] == {"SIZE": 416, "OVERLAP": 32}
    assert values["INPUT"]["MIN_SIZE_TRAIN"] == [800]
