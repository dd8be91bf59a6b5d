"""``predict``: what it writes, what it refuses, and that nothing is lost."""

import csv
import json
import os
import signal
import threading
import time
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from retina_plugin import Predictor
from retina_plugin.__main__ import main

from ..runtime.conftest import CATEGORIES, CLASSES, photos, pixels, run_folder  # noqa: F401  fixtures
from .predict_inputs import write_broken, write_odd


@pytest.fixture
def predict(run_folder, tmp_path, capsys):  # noqa: F811
    """Runs the command on words; returns status, standard output with errors, and the folder of the results."""

    def predict(*words, output="out"):
        status = main(["predict", str(run_folder), *map(str, words), "--output", str(tmp_path / output)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err, tmp_path / output

    return predict


def load(path):
    return json.loads(path.read_text())


def unfinished(folder):
    return [path for path in folder.rglob("*") if "unfinished" in path.name]


def test_results_are_those_of_the_predictor(predict, run_folder, photos):  # noqa: F811
    status, text, out = predict(photos / "images")
    assert status == 0 and f": {out.resolve()}\n" in text and not unfinished(out)
    files = sorted((photos / "images").iterdir())
    expected = Predictor(run_folder)(files)
    results = [result for i, found in enumerate(expected, 1) for result in found.to_coco(i)]
    assert load(out / "predictions.json") == results
    images = load(out / "images.json")["images"]
    sizes = [{"width": found.width, "height": found.height} for found in expected]
    assert images == [{"id": i, "file_name": str(f)} | s for i, (f, s) in enumerate(zip(files, sizes), 1)]
    detections = COCO(out / "images.json").loadRes(str(out / "predictions.json"))
    assert len(detections.anns) == len(results)
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, results, strict=True):
        assert (int(row["image_id"]), float(row["score"])) == (result["image_id"], result["score"])
        assert row["class_name"] == CLASSES[result["category_id"] - 1]
        corners = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
        assert np.allclose(np.subtract(corners[2:], corners[:2]), result["bbox"][2:], atol=1e-4)
    summary = load(out / "summary.json")
    assert (summary["images"], summary["detections"], summary["unreadable"]) == (len(files), len(results), [])
    assert summary["complete"] and sum(summary["detections_by_class"].values()) == len(results)
    for file, found in zip(files, expected):
        with Image.open(out / "annotated" / file.name) as drawn:
            factor = -(-320 // max(found.width, found.height))
            assert drawn.size == (factor * found.width, factor * found.height)
            if file.suffix == ".png":
                assert np.array_equal(drawn, found.draw(0.5))


def test_a_data_set_has_its_ids(predict, photos):  # noqa: F811
    status, _, out = predict("--json", photos / "set.json", "--images", photos / "images", "--no-draw")
    assert status == 0 and not (out / "annotated").exists()
    assert {i["id"]: i["file_name"].rpartition("/")[2] for i in load(out / "images.json")["images"]} == {
        i["id"]: i["file_name"] for i in load(photos / "set.json")["images"]
    }
    assert load(out / "images.json")["categories"] == CATEGORIES
    assert {r["category_id"] for r in load(out / "predictions.json")} <= {c["id"] for c in CATEGORIES}


def test_broken_and_odd_files(predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    odd, broken = write_odd(folder), write_broken(folder)
    status, text, out = predict(folder, tmp_path / "missing.jpg", tmp_path / "*.none", output="out")
    assert status == 1 and "cannot be read: see unreadable in" in text and text.count("\n") < 14
    summary = load(out / "summary.json")
    reasons = {os.path.basename(item["path"]): item["reason"] for item in summary["unreadable"]}
    expected = broken | {"missing.jpg": "there is no such file", "*.none": "no file matches"}
    assert reasons.keys() == expected.keys() and len(broken) > 27
    for name, reason in expected.items():
        assert reason.lower() in reasons[name].lower() and reasons[name], (name, reasons[name])
        assert str(folder) not in reasons[name].replace(str(folder / "gone"), ""), "the path is said once"
    assert summary["images"] == len(odd) and summary["complete"] and not unfinished(out)
    drawn = {path.name for path in (out / "annotated" / "in").iterdir()}
    assert drawn == {name if name.lower().endswith(("jpg", "png")) else f"{name}.jpg" for name in odd}


def test_nothing_but_broken_files(predict, tmp_path):
    (tmp_path / "a.jpg").touch()
    status, text, out = predict(tmp_path / "a.jpg")
    assert status == 1 and "a.jpg cannot be read: it is an empty file (0 bytes)\n" in text
    assert load(out / "predictions.json") == [] and load(out / "images.json")["images"] == []


def write_video(path, count):
    frames = [np.repeat(np.repeat(pixels(6, 8), 10, axis=0), 10, axis=1) for _ in range(count)]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (80, 60))
    for frame in frames:
        video.write(frame)
    video.release()


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    frames = []
    while True:
        is_read, frame = video.read()
        if not is_read:
            return frames, video.get(cv2.CAP_PROP_FPS)
        frames.append(frame)


def test_videos(predict, run_folder, photos, tmp_path):  # noqa: F811
    write_video(tmp_path / "one.avi", 4)
    write_video(tmp_path / "two.avi", 3)
    status, _, out = predict(tmp_path / "one.avi", photos / "images" / "a.jpg", tmp_path / "two.avi", "--batch-size", 2)
    assert status == 0 and not unfinished(out)
    images = load(out / "images.json")["images"]
    assert [image["id"] for image in images] == list(range(1, 9))
    assert [image.get("frame") for image in images] == [0, 1, 2, 3, None, 0, 1, 2]
    for name, count in (("one", 4), ("two", 3)):
        (drawn,) = (out / "annotated").rglob(f"{name}.avi.mp4")
        frames, rate = frames_of(drawn)
        assert len(frames) == count and rate == 5 and frames[0].shape == (240, 320, 3)
    frames, _ = frames_of(tmp_path / "two.avi")
    expected = Predictor(run_folder)(frames)
    results = [r for r in load(out / "predictions.json") if r["image_id"] > 5]
    best = [r["score"] for r in results if r["image_id"] == 7][0]
    assert best == pytest.approx(expected[1].scores[0].item(), abs=1e-4)  # batches round differently
    found = Predictor(run_folder)(tmp_path / "two.avi")
    assert [d.frame for d in found] == [0, 1, 2] and np.array_equal(found[2].boxes, expected[2].boxes)


def test_labels(predict, run_folder, photos):  # noqa: F811
    words = [photos / "images", "--format", "coco,voc,yolo", "--score-threshold", "0.3", "cow=0.5", "--no-draw"]
    status, _, out = predict(*words)
    assert status == 0 and (out / "classes.txt").read_text().split() == CLASSES
    thresholds = {None: 0.3, "cow": 0.5}
    expected = Predictor(run_folder, score_threshold=thresholds)(photos / "images")
    coco = COCO(out / "labels.json")
    assert len(coco.anns) == sum(map(len, expected)) > 10 and coco.loadCats([3])[0]["name"] == "cow"
    for image, found in zip(coco.loadImgs(sorted(coco.imgs)), expected):
        stem = os.path.basename(found.name)[:-4]
        assert [a["score"] for a in coco.imgToAnns[image["id"]]] == found.scores.tolist()
        rows = [line.split() for line in (out / "labels" / "yolo" / f"{stem}.txt").read_text().splitlines()]
        assert [int(row[0]) for row in rows] == found.class_ids.tolist()
        size = [found.width, found.height] * 2
        for row, box in zip(rows, found.boxes):
            x, y, width, height = np.multiply([float(n) for n in row[1:]], size)
            assert np.allclose([x - width / 2, y - height / 2, x + width / 2, y + height / 2], box, atol=1e-3)
        root = ElementTree.parse(out / "labels" / "voc" / f"{stem}.xml").getroot()
        assert (
            root.findtext("size/width") == str(found.width) and root.findtext("filename") == f"{stem}{found.name[-4:]}"
        )
        for item, label, box in zip(root.iter("object"), found.labels, found.boxes, strict=True):
            # As Detectron2 reads them: minus 1 from xmin and ymin.
            corners = [int(item.findtext(f"bndbox/{name}")) - name.endswith("min") for name in _CORNERS]
            assert item.findtext("name") == label and (abs(corners - box) <= 1).all()
            assert corners[0] < corners[2] and corners[1] < corners[3]


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def test_results_are_replaced_only_on_demand_and_moved_away(predict, photos):  # noqa: F811
    image = photos / "images" / "a.jpg"
    _, _, out = predict(image)
    before = (out / "predictions.json").read_bytes()
    (out / "mine.txt").write_text("mine")
    status, text, _ = predict(image, "--score-threshold", "0.5")
    assert status == 2 and "holds results already" in text and (out / "predictions.json").read_bytes() == before
    status, _, _ = predict(image, "--score-threshold", "0.5", "--overwrite", "--no-draw")
    assert status == 0 and (out / "previous_run_1" / "predictions.json").read_bytes() == before
    assert (out / "previous_run_1" / "annotated" / "a.jpg").is_file() and not (out / "annotated").exists()
    assert (out / "mine.txt").read_text() == "mine"
    (out / "annotated").mkdir()
    Image.fromarray(pixels(9, 9)).save(out / "annotated" / "in.png")
    status, text, _ = predict(out / "annotated", "--overwrite")
    assert status == 2 and "lies where results are written" in text and (out / "annotated" / "in.png").is_file()


def test_what_is_wrong_is_said_in_a_line(predict, run_folder, photos, tmp_path, capsys):  # noqa: F811
    image = photos / "images" / "a.jpg"
    for words, line in {
        (): "inputs are images, folders or videos, or else one data set",
        (image, "--json", photos / "set.json"): "--json FILE and --images DIR go together",
        (image, "--dataset", "nothing"): "inputs are images, folders or videos, or else one data set",
        ("--dataset", "nothing"): "data set 'nothing' is not registered",
        (image, "--score-threshold", "high"): "--score-threshold is high, not a score",
        (image, "--score-threshold", "horse=0.5"): "there is no class 'horse'",
        (image, "--batch-size", "0"): "batch_size is 0",
        (image, "--format", "pascal"): "--format is coco, voc, yolo, or several of them with commas, not pascal",
        (image, "MODEL.RETINANET.NUM_CLASS", "3"): "unknown key MODEL.RETINANET.NUM_CLASS",
        (image, "TEST.PRECISION"): "overrides come in pairs",
        (image, "INPUT.MIN_SIZE_TEST", "-1"): "INPUT.MIN_SIZE_TEST is -1",
        ("https://host/a.jpg",): "is an address that is not read",
        (tmp_path / "v.mp4", "--format", "coco"): "v.mp4 is a video",
        (image, photos / "images" / "a.jpg", "--format", "yolo"): "would have the same labels",
    }.items():
        status, text, out = predict(*words)
        assert status == 2 and text.count("error: ") == 1 and line in text, text
        assert not out.exists() or not any(out.iterdir())
    for words, line in ((["photos"], "photos is no folder"), (["TEST.PRECISION", "fp32"], "there is no MODEL")):
        assert main(["predict", *words, "--output", str(tmp_path / "out")]) == 2
        assert line in capsys.readouterr().err


def test_words_behind_thresholds_are_inputs_and_overrides(predict, run_folder, photos, monkeypatch):  # noqa: F811
    monkeypatch.chdir(photos / "images")
    words = ["a.jpg", "--score-threshold", "0.1", "cow=0.2", "c.png", "TEST.DETECTIONS_PER_IMAGE", "2"]
    status, _, out = predict(*words, "--no-draw")
    summary = load(out / "summary.json")
    thresholds, opts = {None: 0.1, "cow": 0.2}, ("TEST.DETECTIONS_PER_IMAGE", 2)
    found = Predictor(run_folder, score_threshold=thresholds, opts=opts)(["a.jpg", "c.png"])
    assert all(len(detections) <= 2 for detections in found)
    assert status == 0 and (summary["images"], summary["detections"]) == (2, sum(map(len, found)))
    assert (summary["score_threshold"], summary["score_thresholds_by_class"]) == (0.1, {"cow": 0.2})


def test_a_signal_leaves_the_results_so_far(predict, photos, tmp_path):  # noqa: F811
    (tmp_path / "list.txt").write_text(f"{photos / 'images' / 'a.jpg'}\n" * 500)
    annotated = tmp_path / "out" / "annotated"

    def interrupt():
        while not annotated.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, text, out = predict(tmp_path / "list.txt")
    thread.join()
    assert status == 75 and "Stopped by a signal" in text
    summary = load(out / "summary.json")
    count = summary["images"]
    assert not summary["complete"] and 0 < count < 500 and not unfinished(out)
    assert len(load(out / "images.json")["images"]) == count == len(list((out / "annotated").iterdir()))
    assert len(load(out / "predictions.json")) == summary["detections"] > 0


@pytest.mark.slow
def test_processes_share_the_inputs(predict, photos, tmp_path):  # noqa: F811
    write_video(tmp_path / "one.avi", 3)
    (tmp_path / "no.jpg").touch()
    inputs = [str(photos / "images"), str(tmp_path / "one.avi"), str(tmp_path / "no.jpg")]
    status, _, alone = predict(*inputs)
    assert status == 1 and predict(*inputs, "--num-gpus", 2, output="both")[0] == 1
    for name in ("predictions.json", "predictions.csv", "images.json"):
        assert (tmp_path / "both" / name).read_bytes() == (alone / name).read_bytes()
    summary = load(tmp_path / "both" / "summary.json")
    assert summary["processes"] == 2 and summary["unreadable"] == load(alone / "summary.json")["unreadable"]
    assert len(list((tmp_path / "both" / "annotated").rglob("*.*"))) == len(list((alone / "annotated").rglob("*.*")))
