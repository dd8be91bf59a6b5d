"""``python -m retina_plugin contact-sheet``."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from retina_plugin import add_retina_config
from retina_plugin.__main__ import main


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
    main(["contact-sheet", str(output_dir)])
    path = output_dir / "inference" / "contact_sheet.png"
    assert capsys.readouterr().out.strip().endswith(str(path.resolve()))
    with Image.open(path) as sheet:
        assert sheet.width > 100


def test_what_is_missing_is_said_in_a_line(output_dir):
    (output_dir / "inference" / "coco_instances_results.json").unlink()
    with pytest.raises(SystemExit, match="^error: No predictions file .*coco_instances_results.json"):
        main(["contact-sheet", str(output_dir)])
    DatasetCatalog.remove("street_test")
    with pytest.raises(SystemExit, match="^error: data set 'street_test' is not registered"):
        main(["contact-sheet", str(output_dir)])
    DatasetCatalog.register("street_test", list)
    with pytest.raises(SystemExit, match="^error: cannot read config file .*nowhere/config.yaml"):
        main(["contact-sheet", "nowhere"])
