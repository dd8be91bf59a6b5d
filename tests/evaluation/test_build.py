"""The evaluator of a data set."""

import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from retina_plugin import add_retina_config
from retina_plugin.evaluation import build_evaluator, inference_folder


@pytest.fixture
def images():
    """A registered set without a file: two images with three boxes each."""
    boxes = {k: [10 * k, 10 * k, 10 * k + 30, 10 * k + 40] for k in range(1, 4)}
    records = [
        {
            "file_name": f"{i}.png",
            "image_id": i,
            "height": 100,
            "width": 100,
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": k % 2} for k, box in boxes.items()
            ],
        }
        for i in (1, 2)
    ]
    DatasetCatalog.register("images", lambda: records)
    MetadataCatalog.get("images").set(thing_classes=["a", "b"])
    yield records
    DatasetCatalog.remove("images")
    MetadataCatalog.remove("images")


def make_cfg(tmp_path, *names):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATASETS.TEST = names
    return cfg


@pytest.mark.parametrize("shift, ap50", [(0.0, 100.0), (60.0, 0.0)])
def test_ap_of_known_detections(images, tmp_path, shift, ap50):
    evaluator = build_evaluator(make_cfg(tmp_path, "images"), "images")
    evaluator.reset()
    for record in images:
        detections = Instances((100, 100))
        detections.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]).float() + shift)
        detections.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        detections.scores = torch.tensor([0.9, 0.8, 0.7])
        evaluator.process([record], [{"instances": detections}])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(ap50)
    assert (tmp_path / "inference" / "coco_instances_results.json").is_file()


def test_several_test_sets_keep_their_results_apart(images, tmp_path):
    cfg = make_cfg(tmp_path, "images", "others")
    assert inference_folder(cfg, "images") == str(tmp_path / "inference" / "images")
    assert isinstance(build_evaluator(cfg, "images"), COCOEvaluator)


def test_a_set_that_is_not_about_boxes_is_refused(images, tmp_path):
    MetadataCatalog.get("images").evaluator_type = "sem_seg"
    with pytest.raises(ValueError, match="images.*sem_seg.*coco"):
        build_evaluator(make_cfg(tmp_path, "images"), "images")


def test_a_set_that_names_its_file_when_it_is_loaded_is_loaded_first(images, tmp_path):
    """COCOEvaluator would write a file of its own, which the set's file contradicts later."""
    file = tmp_path / "set.json"
    coco = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    file.write_text(json.dumps(coco))

    def load():
        MetadataCatalog.get("named_late").set(json_file=str(file), thing_classes=["a", "b"])
        return images

    DatasetCatalog.register("named_late", load)
    try:
        build_evaluator(make_cfg(tmp_path, "named_late"), "named_late")
        assert len(DatasetCatalog.get("named_late")) == 2
        assert MetadataCatalog.get("named_late").json_file == str(file)
    finally:
        DatasetCatalog.remove("named_late")
        MetadataCatalog.remove("named_late")


@pytest.mark.parametrize("cat, dog", [(1, 2), (7, 30)])
def test_labels_are_translated_by_the_ids_of_the_test_set(tmp_path, cat, dog):
    """Whatever the ids of the training set were: only the order of the names counts."""
    boxes = {cat: [10, 10, 30, 40], dog: [50, 20, 25, 35]}
    coco = {
        "images": [{"id": 4, "file_name": "4.jpg", "width": 100, "height": 100}],
        "annotations": [
            {"id": i, "image_id": 4, "category_id": i, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, box in boxes.items()
        ],
        "categories": [{"id": dog, "name": "dog"}, {"id": cat, "name": "cat"}],
    }
    (tmp_path / "ids.json").write_text(json.dumps(coco))
    register_coco_instances("ids", {}, str(tmp_path / "ids.json"), str(tmp_path))
    try:
        (record,) = DatasetCatalog.get("ids")
        evaluator = build_evaluator(make_cfg(tmp_path, "ids"), "ids")
        evaluator.reset()
        detections = Instances((100, 100))
        detections.pred_boxes = Boxes(torch.tensor([[10.0, 10, 40, 50], [50, 20, 75, 55]]))
        detections.pred_classes, detections.scores = torch.tensor([0, 1]), torch.tensor([0.9, 0.8])
        evaluator.process([record], [{"instances": detections}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove("ids")
        MetadataCatalog.remove("ids")
