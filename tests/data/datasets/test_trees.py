"""The set of tree crowns: what it holds, and that no test pixel is near a training pixel."""

import hashlib
import itertools
import json
import zipfile

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image

from retina_plugin.core.errors import UserError
from retina_plugin.data.datasets import trees

try:
    trees.find_wheel()
    missing = ""
except UserError as error:
    missing = str(error)
needs_wheel = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="module")
def photographs():
    with zipfile.ZipFile(trees.find_wheel()) as wheel:
        return {photo: trees.read_photograph(wheel, photo) for photo in trees._NUM_BOXES}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees") / "set"
    trees.build_trees(root)
    return root


@needs_wheel
def test_the_wheel_has_951_boxes(photographs):
    sizes = {photo: pixels.shape for photo, (pixels, _) in photographs.items()}
    assert sorted(sizes.values()) == [(400, 400, 3), (400, 400, 3), (1035, 1249, 3), (2472, 2299, 3)]
    assert sum(len(boxes) for _, boxes in photographs.values()) == 951
    for photo, (_, boxes) in photographs.items():
        height, width, _ = sizes[photo]
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 8).all()


def painted(split, photo, shape):
    """How many images of a split have each pixel of a photograph."""
    count = np.zeros(shape, dtype=int)
    for region in trees.regions(split):
        if region.photo == photo:
            count[region.y0 : region.y1, region.x0 : region.x1] += 1
    return count


def test_test_pixels_are_a_tile_away_from_training_pixels():
    train, test = (painted(split, trees._LARGE, (2472, 2299)) for split in ("train", "test"))
    assert not painted("train", trees._SECOND, (1035, 1249)).any()
    assert train[:, :1499].all() and not train[:, 1499:].any()
    columns = np.flatnonzero(train.any(0)).max(), np.flatnonzero(test.any(0)).min()
    assert columns[1] - columns[0] > trees.TILE


def test_test_tiles_divide_the_test_photographs():
    for photo, shape in ((trees._LARGE, (2472, 2299)), (trees._SECOND, (1035, 1249))):
        tiles, whole = painted("test", photo, shape), painted("test_whole", photo, shape)
        assert np.array_equal(tiles, whole) and set(np.unique(tiles)) <= {0, 1}
    assert painted("test", trees._LARGE, (2472, 2299)).sum() == 400 * 2472
    assert painted("test", trees._SECOND, (1035, 1249)).all()


def test_numbers_of_images_and_areas():
    assert {split: len(trees.regions(split)) for split in trees.SPLITS} == {
        "train": 84, "test": 15, "test_whole": 2, "other": 2,
    }  # fmt: skip
    assert {(r.x1 - r.x0, r.y1 - r.y0) for r in trees.regions("train")} == {(400, 400)}


@needs_wheel
@pytest.mark.parametrize("split", trees.SPLITS)
def test_files_hold_the_pixels_and_boxes_of_the_photographs(built, photographs, split):
    coco = json.loads((built / f"{split}.json").read_text())
    regions = trees.regions(split)
    assert len(coco["images"]) == len(regions) == len(list((built / split).iterdir()))
    by_image = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    for image, region in zip(coco["images"], regions, strict=True):
        pixels, boxes = photographs[region.photo]
        made = np.asarray(Image.open(built / split / image["file_name"]))
        assert np.array_equal(made, pixels[region.y0 : region.y1, region.x0 : region.x1])
        whole = [
            box for box in boxes.tolist()
            if region.x0 <= box[0] and region.y0 <= box[1] and box[2] <= region.x1 and box[3] <= region.y1
        ]  # fmt: skip
        found = [
            [a["bbox"][0] + region.x0, a["bbox"][1] + region.y0, a["bbox"][2], a["bbox"][3]]
            for a in by_image[image["id"]]
        ]
        for x0, y0, x1, y1 in whole:
            assert [x0, y0, x1 - x0, y1 - y0] in found
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] > 0 for a in by_image[image["id"]])


@needs_wheel
def test_a_box_counts_in_one_test_tile_at_most(built):
    """More than half of it is in one tile, or in none."""
    objects = {}
    for split in ("test", "test_whole"):
        coco = json.loads((built / f"{split}.json").read_text())
        objects[split] = sum(not annotation["iscrowd"] for annotation in coco["annotations"])
    assert 0.9 * objects["test_whole"] < objects["test"] <= objects["test_whole"]


@needs_wheel
def test_is_the_same_set_each_time(built, tmp_path):
    trees.build_trees(tmp_path / "again")
    for path in itertools.islice(sorted(built.rglob("*")), 0, None, 7):
        if path.is_file():
            again = tmp_path / "again" / path.relative_to(built)
            assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()


@needs_wheel
def test_detectron2s_evaluator_may_be_built_before_the_set_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("RETINA_PLUGIN_CACHE", str(tmp_path / "cache"))
    names = [f"trees_{split}" for split in trees.SPLITS]
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    trees.register_trees()
    try:
        evaluator = COCOEvaluator("trees_other", output_dir=str(tmp_path / "out"))
        assert sorted(len(record["annotations"]) for record in DatasetCatalog.get("trees_other")) == [37, 61]
        assert len(evaluator._coco_api.getAnnIds()) == 37 + 61
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        monkeypatch.undo()
        trees.register_trees()


def test_a_missing_or_another_wheel_is_told_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(UserError, match="pip download --no-deps -d .* deepforest==2.1.0"):
        trees.build_trees(tmp_path / "set")
    folder = tmp_path / "share" / "retina_plugin"
    folder.mkdir(parents=True)
    (folder / trees.WHEEL).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the file that the set of trees is made of"):
        trees.build_trees(tmp_path / "set")
    assert not (tmp_path / "set").exists() and not list(tmp_path.glob(".set*"))
