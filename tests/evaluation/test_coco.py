"""AP without detections, and what is said about an AP of 0."""

import json
import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from retina_plugin import add_retina_config, merge_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.diagnostics.zero_ap import explain_zero_ap
from retina_plugin.evaluation import build_evaluator

CLASSES = ("cat", "dog", "cow", "hen")  # of which no box is a hen
SIDE = 64
# (image, class, x, y, width, height, crowd): small boxes of cats, a medium one of a dog, a crowd of cows
BOXES = [(1, 0, 4, 4, 10, 10, 0), (1, 0, 30, 30, 12, 9, 0), (2, 1, 8, 8, 40, 48, 0), (3, 2, 0, 0, 60, 60, 1)]


@pytest.fixture
def zoo(tmp_path):
    rng = np.random.default_rng()
    images = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in (1, 2, 3)]
    for image in images:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / image["file_name"])
    annotations = [
        {"id": i + 1, "image_id": n, "category_id": c + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd}
        for i, (n, c, x, y, w, h, crowd) in enumerate(BOXES)
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    coco = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "zoo.json").write_text(json.dumps(coco))
    register_coco_instances("zoo", {}, str(tmp_path / "zoo.json"), str(tmp_path))
    yield tmp_path
    DatasetCatalog.remove("zoo")
    MetadataCatalog.remove("zoo")


@pytest.fixture
def make_cfg(zoo, request):
    def make(*opts):
        cfg = get_cfg()
        add_retina_config(cfg)
        model = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16)
        model += ("MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.PIXEL_STD", [58.0] * 3)
        data = ("DATASETS.TEST", ("zoo",), "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", SIDE)
        config = str(request.config.rootpath / "configs" / "Base-RetinaNet.yaml")
        merge_config(cfg, config, [*model, *data, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(zoo), *opts])
        return cfg

    return make


@pytest.fixture
def evaluate(make_cfg, caplog):
    """evaluate(detections, *opts) -> results and warnings; detections of an image: (class, x, y, width, height).

    The explanation gets a model that is none of ours.
    """

    def run(detections, *opts):
        cfg = make_cfg(*opts)
        loader = build_detection_test_loader(cfg, "zoo")
        evaluator = build_evaluator(cfg, "zoo", partial(explain_zero_ap, cfg, torch.nn.Identity()))
        evaluator.reset()
        with caplog.at_level(logging.WARNING):
            for inputs in loader:
                found = torch.tensor(detections.get(inputs[0]["image_id"], [])).reshape(-1, 5)
                instances = Instances((SIDE, SIDE))
                instances.pred_boxes = Boxes(torch.cat([found[:, 1:3], found[:, 1:3] + found[:, 3:]], dim=1).float())
                instances.pred_classes = found[:, 0].long()
                instances.scores = torch.linspace(0.9, 0.6, len(found))
                evaluator.process(inputs, [{"instances": instances}])
            results = evaluator.evaluate()["bbox"]
        return results, [r.getMessage() for r in caplog.records if r.name == "retina_plugin.evaluation.coco"]

    return run


@pytest.fixture
def evaluate_model(make_cfg, caplog):
    """evaluate_model(change, *opts) -> results and warnings of a fresh detector after ``change(model)``."""

    @torch.no_grad()
    def run(change, *opts):
        cfg = make_cfg(*opts)
        model = build_model(cfg).eval()
        change(model)
        evaluator = build_evaluator(cfg, "zoo", partial(explain_zero_ap, cfg, model))
        with caplog.at_level(logging.WARNING):
            results = inference_on_dataset(model, build_detection_test_loader(cfg, "zoo"), evaluator)["bbox"]
        return results, [r.getMessage() for r in caplog.records if r.name == "retina_plugin.evaluation.coco"]

    return run


def zeros_and_nans(results):
    zero = {name for name, value in results.items() if value == 0}
    assert all(math.isnan(value) for name, value in results.items() if name not in zero)
    return zero


def test_without_detections_ap_is_0_where_there_are_boxes_and_nan_elsewhere(evaluate):
    results, (warning,) = evaluate({})
    assert zeros_and_nans(results) == {"AP", "AP50", "AP75", "APs", "APm", "AP-cat", "AP-dog"}
    assert set(results) == {"AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AP-{name}" for name in CLASSES)}
    assert warning.startswith("AP on 'zoo' is 0, with no detection in 3 images that have 3 boxes. What is known:")
    # The same that COCO gives for one that is wrong.
    wrong, _ = evaluate({3: [(3, 1, 1, 2, 2)]})
    assert zeros_and_nans(wrong) == zeros_and_nans(results)


def test_a_set_without_boxes_has_no_ap(evaluate, zoo):
    coco = json.loads((zoo / "zoo.json").read_text())
    (zoo / "zoo.json").write_text(json.dumps({**coco, "annotations": []}))
    results, (warning,) = evaluate({})
    assert zeros_and_nans(results) == set()
    assert warning.startswith("AP on 'zoo' is nan") and "Was the right annotation file registered?" in warning


def test_detections_that_are_right_need_no_explanation(evaluate):
    results, warnings = evaluate({1: [(0, 4, 4, 10, 10)]})
    assert results["AP"] > 1 and warnings == []


@pytest.mark.parametrize(
    "detections, parts",
    [
        (
            {1: [(1, 4, 4, 10, 10), (1, 30, 30, 12, 9)], 2: [(0, 8, 8, 40, 48)]},
            ["100% of the boxes are found with an IoU of 0.5 or more, but as", "(most often 'cat' as 'dog')"],
        ),
        ({1: [(3, 50, 1, 10, 9)], 2: [(3, 50, 1, 9, 9)]}, ["all detections are of class 'hen', while", "is 0.00"]),
        ({1: [(0, 2, 2, 5, 5), (0, 15, 15, 6, 4)], 2: [(1, 4, 4, 20, 24)]}, ["do width and height in"]),
        ({1: [(0, 40, 50, 1, 1)], 2: [(1, 50, 50, 2, 1)]}, ["detections 2 (medians): are the anchors"]),
    ],
)  # fmt: skip
def test_detections_that_are_wrong(evaluate, detections, parts):
    results, (warning,) = evaluate(detections)
    assert results["AP"] == 0 and all(part in warning for part in parts), warning


def untrained(model):
    pass


def break_a_weight(model):
    model.head.cls_score.weight[0, 0, 0, 0] = math.nan


def break_outputs(model):
    model.head.cls_score.register_forward_hook(lambda layer, inputs, output: output * math.nan)


def background_everywhere(model):
    model.head.cls_score.bias.fill_(-9)


def blind(model):
    model.head.cls_score.weight.zero_()
    model.head.cls_score.bias.fill_(-3.2)


def sure(model):
    model.head.cls_score.weight.mul_(0.01)  # of which 0.98, the sigmoid of 4, shows nothing
    model.head.cls_score.bias.fill_(4)
    model.head.bbox_pred.bias.fill_(1e4)


@pytest.mark.parametrize(
    "change, opts, parts",
    [
        (untrained, (), ["scores are still where the initialization puts them", "MODEL.WEIGHTS is empty"]),
        (untrained, ("MODEL.WEIGHTS", "mine.pth"), ["the weights are those of mine.pth"]),
        (break_a_weight, (), ["1 weights are not finite, such as head.cls_score.weight"]),
        (break_outputs, (), ["of the outputs for 3 images are NaN or infinite"]),
        (background_everywhere, (), ["training finds only background. Look at the positives in its log"]),
        (blind, (), ["the highest score in 3 images is 0.039", "all scores are the same"]),
        (sure, ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.999), ["only what is above MODEL.RETINANET.SCORE_THRESH_TEST"]),
        (sure, (), ["there are scores up to 0.98", "their boxes are empty or outside of the image"]),
    ],
)
def test_a_model_that_finds_nothing(evaluate_model, change, opts, parts):
    results, (warning,) = evaluate_model(change, "MODEL.WEIGHTS", "", *opts)
    assert results["AP"] == 0 and all(part in warning for part in parts), warning


def test_more_detections_than_ap_counts(evaluate, make_cfg, caplog):
    # 100 false detections of high score, then a right one.
    false = [(0, 40 + i % 10, 2 + i // 10, 3, 3) for i in range(100)]
    detections = {1: [*false, (0, 4, 4, 10, 10)]}
    with caplog.at_level(logging.WARNING):
        counted, _ = evaluate(detections, "TEST.DETECTIONS_PER_IMAGE", 300, "TEST.AP_DETECTIONS_PER_IMAGE", 300)
        assert "no longer compares" not in caplog.text
        silent, _ = evaluate(detections, "TEST.DETECTIONS_PER_IMAGE", 300)
    assert "TEST.DETECTIONS_PER_IMAGE is 300, but AP counts the 100 best detections of an image" in caplog.text
    assert silent["AP-cat"] == 0 and counted["AP-cat"] > 0


def test_without_a_function_that_explains_there_is_no_warning(make_cfg, caplog):
    evaluator = build_evaluator(make_cfg(), "zoo")
    evaluator.reset()
    for inputs in build_detection_test_loader(make_cfg(), "zoo"):
        instances = Instances((SIDE, SIDE), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        instances.pred_classes = torch.zeros(0, dtype=torch.int64)
        evaluator.process(inputs, [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == 0
    assert not [r for r in caplog.records if r.name == "retina_plugin.evaluation.coco"]


def _numbers(convert):
    def change(record):
        record.update(image_id=convert(record["image_id"]), width=convert(SIDE), height=convert(SIDE))
        for instance in record["annotations"]:
            instance.update(category_id=convert(instance["category_id"]), iscrowd=convert(instance["iscrowd"]))

    return change


@pytest.mark.parametrize("convert", [int, np.int64, np.uint8, np.float32, torch.tensor], ids=lambda c: c.__name__)
def test_dicts_with_numbers_of_other_types_are_evaluated_and_their_results_are_json(convert, make_cfg, zoo, tmp_path):
    records = DatasetCatalog.get("zoo")
    for record in records:
        _numbers(convert)(record)
    name = f"numbers_{convert.__name__}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = list(CLASSES)
    cfg = make_cfg("DATASETS.TEST", (name,), "OUTPUT_DIR", str(tmp_path / "out"))
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for inputs in build_detection_test_loader(cfg, name):
        boxes = [box for box in BOXES if box[0] == int(inputs[0]["image_id"]) and not box[-1]]
        instances = Instances((SIDE, SIDE))
        corners = [[x, y, x + width, y + height] for _, _, x, y, width, height, _ in boxes]
        instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        instances.pred_classes = torch.tensor([label for _, label, *_ in boxes], dtype=torch.int64)
        instances.scores = torch.full((len(boxes),), 0.9)
        evaluator.process(inputs, [{"instances": instances}])
    results = evaluator.evaluate()["bbox"]
    assert results["AP"] > 99.9 and results["AP-cat"] > 99.9 and results["AP-dog"] > 99.9
    detections = json.loads((tmp_path / "out" / "inference" / "coco_instances_results.json").read_text())
    assert sorted(d["image_id"] for d in detections) == [1, 1, 2]
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_values_that_are_no_json_are_named(make_cfg, zoo, tmp_path):
    records = DatasetCatalog.get("zoo")
    records[1]["image_id"] = {1, 2}
    DatasetCatalog.register("sets_as_ids", lambda: records)
    MetadataCatalog.get("sets_as_ids").thing_classes = list(CLASSES)
    with pytest.raises(ConfigError, match="'sets_as_ids' holds {1, 2}, which"):
        build_evaluator(make_cfg("DATASETS.TEST", ("sets_as_ids",), "OUTPUT_DIR", str(tmp_path)), "sets_as_ids")
    DatasetCatalog.remove("sets_as_ids")
    MetadataCatalog.remove("sets_as_ids")
