"""``python -m retina_plugin anchors check | fit | show``."""

import json

import numpy as np
import pytest
from PIL import Image

from retina_plugin.__main__ import main

from ..tools.anchors.sets import random_boxes, write_config, write_set


@pytest.fixture
def words(tmp_path, seed):
    """Arguments for a set of which a third of the boxes is too small for the smallest anchor, 16 x 16."""
    rng = np.random.default_rng(seed)
    boxes = [np.concatenate([random_boxes(rng, 4, 32.0), random_boxes(rng, 2, 8.0)]) for _ in range(6)]
    json_file, images = write_set(tmp_path, boxes)
    config = write_config(tmp_path, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]])
    return ["--json", str(json_file), "--images", str(images), "--config-file", str(config)]


def test_check_writes_and_exits_by_the_share(words, tmp_path, capsys):
    out = tmp_path / "out"
    options = [*words, "--output", str(out), "MODEL.RETINANET.IOU_THRESHOLDS", "[0.25, 0.3]"]
    # 8 x 8 in 16 x 16 is at most a quarter; 32 x 32 with its nearest anchor at least 24 * 24 / (2048 - 576) = 0.39.
    assert main(["anchors", "check", *options]) == 1
    printed = capsys.readouterr().out
    assert "36 boxes of 6 images" in printed and "33.3% of the boxes have no anchor" in printed
    report = json.loads((out / "coverage.json").read_text())
    assert report["num_missed"] == len(report["worst_missed"]) == 12
    assert sum(report["best_iou_histogram"]["counts"]) == 36
    assert [row["boxes"] for row in report["rows"] if row["group"] == "class"] == [12, 12, 12]
    assert all(box["best_iou"] <= 0.25 for box in report["worst_missed"])
    assert sum(report["positives_by_level"].values()) == pytest.approx(report["rows"][0]["positives"])
    with Image.open(out / "coverage.png") as image:
        assert image.width > 400

    assert main(["anchors", "check", *options]) == 2
    assert "coverage.json exists" in capsys.readouterr().err
    assert main(["anchors", "check", *options[:6], "--max-missed", "0.4", *options[8:]]) == 0
    assert main(["anchors", "check", *words, "--max-images", "1"]) == 1
    assert "6 boxes of 1 of 6 images" in capsys.readouterr().out


def test_fit_and_show(words, tmp_path, capsys):
    assert main(["anchors", "fit", *words, "--scales", "2", "--ratios", "1"]) == 0
    printed = capsys.readouterr().out
    assert "ASPECT_RATIOS: [[" in printed and "images that were held out" in printed
    assert main(["anchors", "show", *words, "--output", str(tmp_path / "shown"), "--num-images", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "shown" / "anchors_1.png")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["check"], "name a registered data set, or a COCO file"),
        (["check", "no_such_set"], "data set 'no_such_set' is not registered"),
        (["check", "name", "--json", "a.json", "--images", "b"], "both name and --json a.json name a data set"),
        (["check", "--json", "a.json"], "--json FILE and --images DIR go together"),
        (["check", "name", "--scales", "2"], "anchors check takes no --scales"),
        (["fit", "name", "--num-images", "2", "--max-missed", "0"], "anchors fit takes no --max-missed, --num-images"),
        (["fit", "name", "--ratios", "0"], "--scales and --ratios are numbers of anchors"),
        (["show", "name"], "anchors show writes images: give a folder"),
        (["check", "name", "--overwrite"], "--overwrite is for the files in --output"),
        (["check", "name", "--seed", "-1"], "--seed and --max-images are 0 or more"),
        (["check", "trees_train", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "not a RetinaNet, and has other"),
    ],
)
def test_wrong_arguments_are_a_line(arguments, message, capsys):
    assert main(["anchors", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_a_set_without_boxes_and_a_share_that_is_none(words, tmp_path, capsys):
    assert main(["anchors", "check", *words, "--max-missed", "20"]) == 2
    assert "--max-missed is 20.0: a share of the boxes" in capsys.readouterr().err
    write_set(tmp_path, [[], []])
    for action in ("check", "fit"):
        assert main(["anchors", action, *words, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"]) == 2
        assert "none of 2 images of json_train has a box to train on" in capsys.readouterr().err
