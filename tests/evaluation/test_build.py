"""The evaluator of a data set."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from retina_plugin import add_retina_config
from retina_plugin.evaluation import build_evaluator, inference_folder


@pytest.fixture
def pictures():
    """A registered set without a file: two pictures with three boxes each."""
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
    DatasetCatalog.register("pictures", lambda: records)
    MetadataCatalog.get("pictures").set(thing_classes=["a", "b"])
    yield records
    DatasetCatalog.remove("pictures")
    MetadataCatalog.remove("pictures")


def make_cfg(tmp_path, *names):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATASETS.TEST = names
    return cfg


@pytest.mark.parametrize("shift, ap50", [(0.0, 100.0), (60.0, 0.0)])
def test_ap_of_known_detections(pictures, tmp_path, shift, ap50):
    evaluator = build_evaluator(make_cfg(tmp_path, "pictures"), "pictures")
    evaluator.reset()
    for record in pictures:
        detections = Instances((100, 100))
        detections.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]).float() + shift)
        detections.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        detections.scores = torch.tensor([0.9, 0.8, 0.7])
        evaluator.process([record], [{"instances": detections}])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(ap50)
    assert (tmp_path / "inference" / "coco_instances_results.json").is_file()


def test_several_test_sets_keep_their_results_apart(pictures, tmp_path):
    cfg = make_cfg(tmp_path, "pictures", "others")
    assert inference_folder(cfg, "pictures") == str(tmp_path / "inference" / "pictures")
    assert isinstance(build_evaluator(cfg, "pictures"), COCOEvaluator)


def test_a_set_that_is_not_about_boxes_is_refused(pictures, tmp_path):
    MetadataCatalog.get("pictures").evaluator_type = "sem_seg"
    with pytest.raises(ValueError, match="pictures.*sem_seg.*coco"):
        build_evaluator(make_cfg(tmp_path, "pictures"), "pictures")
