"""``Predictor``: the detections of the evaluation, of whatever names an image."""

import json
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from PIL import Image

from retina_plugin import ConfigError, Detections, Predictor
from retina_plugin.checkpoint.run_folder import read_run_config
from retina_plugin.core.errors import CheckpointError, ImageError
from retina_plugin.engine.trainer import evaluate

from .conftest import CATEGORIES, CLASSES, pixels


@pytest.fixture(scope="module")
def predictor(run_folder):
    return Predictor(run_folder)


@pytest.fixture(scope="module")
def files(photos):
    return sorted((photos / "images").iterdir())


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for name in ("boxes", "scores", "class_ids"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert (found.height, found.width) == (expected.height, expected.width)


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("TEST.PRECISION", "bf16", "INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", 0),
        ("TEST.TILE.SIZE", 40, "TEST.TILE.OVERLAP", 12, "TEST.TILE.BATCH", 3),
    ],
    ids=["default", "bf16", "tiles"],
)
def test_detections_are_those_of_the_evaluation(run_folder, photos, files, tmp_path, opts):
    name = f"photos_{tmp_path.name}"
    register_coco_instances(name, {}, str(photos / "set.json"), str(photos / "images"))
    try:
        cfg = read_run_config(run_folder, ["DATASETS.TEST", (name,), "OUTPUT_DIR", str(tmp_path), *opts])
        cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(tmp_path), str(run_folder / "model_final.pth")
        evaluate(cfg)
        results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    predictor = Predictor(run_folder, opts=opts)
    image_ids = {i["file_name"]: i["id"] for i in json.loads((photos / "set.json").read_text())["images"]}
    for kind in (str, lambda file: read_image(file, "BGR"), Image.open):
        found = predictor([kind(file) for file in files])
        ids = [category["id"] for category in CATEGORIES]
        coco = {file.name: d.to_coco(image_ids[file.name], ids) for file, d in zip(files, found)}
        ours = [result for name in sorted(image_ids, key=image_ids.get) for result in coco[name]]  # by id
        assert ours == results and len(results) > 50


def test_what_a_call_returns(predictor, photos, files):
    one = predictor(files[1])
    assert isinstance(one, Detections) and one.name == str(files[1]) and (one.width, one.height) == (60, 90)
    assert one.labels == [CLASSES[i] for i in one.class_ids] and (np.diff(one.scores) <= 0).all()
    for many in ([files[1]], str(photos / "images" / "b*.jpg"), iter([str(files[1])]), (Image.open(files[1]),)):
        found = predictor(many)
        assert isinstance(found, list) and len(found) == 1
        assert_equal(found[0], one)
    whole = predictor(photos / "images")
    assert [d.name for d in whole] == list(map(str, files))
    assert_equal(whole[1], one)
    assert predictor([]) == []


def test_an_image_that_cannot_be_read(predictor, files, tmp_path):
    with pytest.raises(ImageError, match="no.jpg cannot be read: there is no such file"):
        predictor("no.jpg")
    for array in (pixels(9, 9).astype(float), pixels(9, 9, 4), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(ImageError, match="image 0 cannot be read: "):
            predictor(array)
    found = list(predictor.stream([files[0], "no.jpg", files[1]]))
    assert [type(x) for x in found] == [Detections, ImageError, Detections]
    with pytest.raises(TypeError, match="not int"):
        predictor([3])


@pytest.mark.parametrize("size", [2, 5])
def test_batches_give_the_same_detections_in_the_same_order(run_folder, predictor, files, size):
    files = [files[i] for i in np.random.permutation(list(range(len(files))) * 2)]
    for found, expected in zip(Predictor(run_folder, batch_size=size).stream(files), predictor(files), strict=True):
        assert found.name == expected.name
        # Another order of the terms of convolutions changes scores in the last digits, and which of two is the higher.
        best = expected.scores > expected.scores.min() + 1e-3
        for box, score, label in zip(expected.boxes[best], expected.scores[best], expected.class_ids[best]):
            same = (found.class_ids == label) & (abs(found.scores - score) < 1e-4)
            assert (abs(found.boxes[same] - box).max(axis=1) < 1e-2 * max(found.height, found.width)).any()


def test_thresholds(run_folder, predictor, files):
    plain = predictor(files[0])
    middle = float(np.median(plain.scores))
    for threshold in (middle, {"dog": middle}, {None: middle, "cat": 0.999}):
        by_name = threshold if isinstance(threshold, dict) else dict.fromkeys(CLASSES, threshold)
        lowest = [by_name.get(name, by_name.get(None, 0.05)) for name in CLASSES]
        keep = plain.scores >= np.float32(lowest)[plain.class_ids]
        found = Predictor(run_folder, score_threshold=threshold)(files[0])
        assert keep.any() and np.array_equal(found.scores, plain.scores[keep])
        assert np.array_equal(found.boxes, plain.boxes[keep])
    # Below the model's own threshold, there is more to find, but only of the class that asks for it.
    strict = ("MODEL.RETINANET.SCORE_THRESH_TEST", middle)
    found = Predictor(run_folder, score_threshold={"dog": 0.05}, opts=strict)(files[0])
    keep = (plain.scores > middle) | ((plain.class_ids == 1) & (plain.scores >= 0.05))
    kept = found.scores >= plain.scores.min()  # of plain's 20, others were in the way
    assert np.array_equal(found.scores[kept], plain.scores[keep])


@pytest.mark.parametrize(
    "threshold, problem",
    [(1.5, "threshold is 1.5"), ({"cow": -1}, "of class 'cow' is -1"), ({"horse": 0.5}, "no class 'horse'")],
)
def test_thresholds_that_cannot_be(run_folder, threshold, problem):
    with pytest.raises(ConfigError, match=problem):
        Predictor(run_folder, score_threshold=threshold)


def test_a_pickled_copy_loads_the_model_when_it_is_used(predictor, files):
    data = pickle.dumps(predictor)
    assert len(data) < 10_000
    copy = pickle.loads(data)
    assert copy._backend is None
    assert_equal(copy(files[0]), predictor(files[0]))


def test_configuration_and_weights_in_place_of_a_folder(run_folder, predictor, files):
    weights = run_folder / "model_final.pth"
    for model in (run_folder / "config.yaml", read_run_config(run_folder)):
        assert_equal(Predictor(model, weights, "cpu")(files[0]), predictor(files[0]))
        with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty"):
            Predictor(model)
    with pytest.raises(CheckpointError, match="there is no such file"):
        Predictor(run_folder, "no.pth")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Predictor(run_folder, batch_size=0)


def test_detections_check_themselves():
    empty = {"class_names": ("a",), "height": 2, "width": 2}
    boxes, scores, ids = np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
    assert Detections(boxes, scores, ids, **empty).to_coco()[0]["category_id"] == 1
    for wrong in ((boxes[0], scores, ids), (boxes, scores.astype(float), ids), (boxes, scores, ids + 1)):
        with pytest.raises(ValueError):
            Detections(*wrong, **empty)


def test_drawing(predictor, files):
    found = next(predictor.stream(files[1], keep_images=True))
    drawn = np.asarray(found.draw()).astype(int)
    plain = np.asarray(Image.fromarray(read_image(str(files[1]), "RGB"))).astype(int)
    plain = plain.repeat(4, axis=0).repeat(4, axis=1)  # 90 pixels become more than 320
    assert drawn.shape == plain.shape == (360, 240, 3) and (drawn != plain).any()
    assert np.array_equal(drawn, predictor(files[1]).draw())  # reads the file again
    assert np.array_equal(plain, found.draw(1.0))
    with pytest.raises(ValueError, match="keep_images=True"):
        predictor(pixels(9, 9)).draw()


def test_boxes_are_drawn_where_they_are():
    boxes, ids, scores = np.array([[100, 200, 300, 350]], np.float32), np.zeros(1, np.int64), np.ones(1, np.float32)
    image = pixels(400, 500)
    found = Detections(boxes, scores, ids, ("cat",), 400, 500, image=Image.fromarray(image))
    rows, columns = np.nonzero((np.asarray(found.draw()) != image).any(axis=2))
    assert (columns.min(), columns.max(), rows.max()) == (100, 299, 349) and 180 < rows.min() < 190  # the label above


def test_supervision_reads_detections(predictor, files):
    supervision = pytest.importorskip("supervision", reason="the package supervision is not installed")
    found = predictor(files[0])
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert np.array_equal(theirs.xyxy, found.boxes) and list(theirs["class_name"]) == found.labels
    assert np.array_equal(theirs[theirs.class_id == 1].confidence, found.scores[found.class_ids == 1])


def test_sahi_reads_detections(predictor, files):
    pytest.importorskip("sahi", reason="the package sahi is not installed")
    found = predictor(files[0])
    theirs = [prediction.to_coco_prediction(image_id=1).json for prediction in found.to_sahi()]
    for one, other in zip(theirs, found.to_coco(1), strict=True):
        assert one["score"] == other["score"] and one["category_name"] == CLASSES[other["category_id"] - 1]
        assert np.allclose(one["bbox"], other["bbox"], atol=1)  # sahi may round boxes


def test_fiftyone_reads_detections(predictor, files):
    pytest.importorskip("fiftyone", reason="the package fiftyone is not installed")
    found = predictor(files[0])
    theirs = found.to_fiftyone().detections
    for one, (x0, y0, x1, y1), label in zip(theirs, found.boxes, found.labels, strict=True):
        x, y, width, height = np.multiply(one.bounding_box, [found.width, found.height] * 2)
        assert np.allclose([x, y, x + width, y + height], [x0, y0, x1, y1], atol=1e-3) and one.label == label
