"""``python -m retina_plugin visualize``."""

import json
import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from retina_plugin import add_retina_config
from retina_plugin.__main__ import main
from retina_plugin.tools.visualize import grid


@pytest.fixture
def output_dir(tmp_path):
    """What training leaves behind, for a set of one image."""
    Image.new("RGB", (60, 40), (90, 90, 90)).save(tmp_path / "street.png")
    annotation = {"bbox": [5, 5, 30, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "street.png"), "image_id": 4, "height": 40, "width": 60}
    DatasetCatalog.register("street_test", lambda: [{**record, "annotations": [annotation]}])
    MetadataCatalog.get("street_test").thing_classes = ["car"]
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.DATASETS.TEST = ("street_test",)
    cfg.OUTPUT_DIR = "where/it/was/trained"
    folder = tmp_path / "output"
    (folder / "inference").mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    results = [{"image_id": 4, "category_id": 0, "bbox": [6, 6, 20, 20], "score": 0.9}]
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
    yield folder
    DatasetCatalog.remove("street_test")
    MetadataCatalog.remove("street_test")


def test_draws_what_training_left_behind_and_prints_where(output_dir, capsys):
    main(["visualize", str(output_dir)])
    path = output_dir / "inference" / "contact_sheet.png"
    assert capsys.readouterr().out.strip().endswith(str(path.resolve()))
    with Image.open(path) as sheet:
        assert sheet.width > 100


def test_the_old_name_of_the_command_works_and_warns(output_dir, capsys):
    assert not main(["contact-sheet", str(output_dir)])
    assert "contact-sheet is the old name of visualize" in capsys.readouterr().err
    assert (output_dir / "inference" / "contact_sheet.png").is_file()


def tiles_of(sheet):
    """The pixels below the header, which has the name of the set; its letters change the palette a little."""
    with Image.open(sheet) as image:
        return np.asarray(image.convert("RGB"), dtype=float)[40:]


def test_a_coco_file_stands_in_for_test_sets_that_are_not_registered(output_dir, tmp_path, capsys, monkeypatch):
    """As after a training by a script that registered its sets."""
    annotation = {"id": 1, "image_id": 4, "category_id": 0, "bbox": [5, 5, 25, 25], "area": 625, "iscrowd": 0}
    image = {"id": 4, "file_name": "street.png", "width": 60, "height": 40}
    coco = {"images": [image], "annotations": [annotation], "categories": [{"id": 0, "name": "car"}]}
    file = tmp_path / "street.json"
    file.write_text(json.dumps(coco))
    main(["visualize", str(output_dir)])
    sheet = output_dir / "inference" / "contact_sheet.png"
    expected = tiles_of(sheet)
    sheet.unlink()
    monkeypatch.delitem(DatasetCatalog.data, "street_test")
    assert main(["visualize", str(output_dir)]) == 2
    pair = ["--json", str(file), "--images", str(tmp_path)]
    for _ in range(2):  # also a second time in one process
        assert not main(["visualize", str(output_dir), *pair])
        assert np.abs(tiles_of(sheet) - expected).max() <= 4
    capsys.readouterr()
    for half in (pair[:2], pair[2:]):
        assert main(["visualize", str(output_dir), *half]) == 2
        assert capsys.readouterr().err.startswith("error: --json FILE and --images DIR go together")
    assert main(["visualize", str(output_dir), "--json", "no.json", "--images", str(tmp_path)]) == 2
    assert "is not on this machine: no " in capsys.readouterr().err


def test_overrides_come_last(output_dir, capsys):
    assert main(["visualize", str(output_dir), "--num-images", "1", "DATASETS.TEST", "('no_test',)"]) == 2
    assert capsys.readouterr().err.startswith("error: data set 'no_test' is not registered")


def test_what_is_missing_is_said_in_a_line(output_dir, capsys):
    def error(*arguments):
        assert main(["visualize", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    (output_dir / "inference" / "coco_instances_results.json").unlink()
    assert re.match("error: No predictions file .*coco_instances_results.json", error(output_dir))
    DatasetCatalog.remove("street_test")
    assert error(output_dir).startswith("error: data set 'street_test' is not registered")
    DatasetCatalog.register("street_test", list)
    assert re.match("error: cannot read config file .*nowhere/config.yaml", error("nowhere"))
    assert error(output_dir, "--num-images", 0).startswith("error: --num-images is 0")


@pytest.fixture
def drawn_names(monkeypatch):
    """The names on the labels of detections, as they are drawn."""
    names, draw = [], grid.draw_label
    monkeypatch.setattr(grid, "draw_label", lambda *args: (names.append(args[3]), draw(*args)))
    return names


def test_a_set_without_class_names_has_those_of_the_checkpoint(output_dir, drawn_names):
    MetadataCatalog.remove("street_test")
    main(["visualize", str(output_dir)])
    torch.save({"model": {"bias": torch.zeros(1)}, "class_names": ["tram"]}, output_dir / "model_final.pth")
    (output_dir / "last_checkpoint").write_text("model_final.pth")
    main(["visualize", str(output_dir)])
    MetadataCatalog.get("street_test").thing_classes = ["car"]
    main(["visualize", str(output_dir)])
    assert drawn_names == ["0 0.90", "tram 0.90", "car 0.90"]
