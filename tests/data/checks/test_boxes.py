"""What is said about boxes is what Detectron2 does with them."""

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

from retina_plugin.data import checks

from .sets import places


def _map(cfg, folder, size, boxes):
    Image.new("RGB", size).save(folder / "a.png")
    annotations = [{"bbox": list(b), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for b in boxes]
    record = {"file_name": str(folder / "a.png"), "width": size[0], "height": size[1], "annotations": annotations}
    return DatasetMapper(cfg, is_train=True)(record)["instances"].gt_boxes.tensor.numpy().astype(float)


def test_integer_boxes_lose_half_a_pixel_at_training_size_and_floats_nothing(cfg, random_set, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (800,), "none"
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    rng = random_set.rng
    corner, sides = rng.integers(0, 300, (400, 2)), rng.integers(5, 100, (400, 2))
    boxes = np.concatenate([corner, sides], axis=1)
    integers = _map(cfg, tmp_path, (640, 427), boxes.tolist())
    floats = _map(cfg, tmp_path, (640, 427), boxes.astype(float).tolist())
    exact = np.concatenate([corner, corner + sides], axis=1) * ([1199 / 640, 800 / 427] * 2)
    np.testing.assert_allclose(floats, exact, rtol=1e-6)
    np.testing.assert_array_equal(integers, np.floor(exact))
    lost = exact - integers
    print(f"integer boxes lose {lost.mean():.3f} pixels of an edge on average, {lost.max():.3f} at most")
    assert 0 <= lost.min() and lost.max() < 1 and abs(lost.mean() - 0.5) < 0.05


@pytest.mark.parametrize("edges, sampling, reported", [
    ((200, 400), "choice", False),
    ((200, 250), "choice", True),
    ((200, 400), "range", True),
    ((0,), "choice", False),
])  # fmt: skip
def test_integer_boxes_are_reported_where_they_lose_anything(edges, sampling, reported, cfg, random_set, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = edges, 2000, sampling
    for image in random_set.coco["images"]:
        image.update(width=100, height=100)
        random_set.draw(image)
    for annotation in random_set.coco["annotations"]:
        annotation["bbox"] = random_set.rng.integers(35, 50, 4).tolist()
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    random_set.write()
    kinds = {place[0] for place in places(random_set.check(cfg).found)}
    assert kinds - {"box-duplicate", "box-two-classes", "anchors-too-large"} == ({"box-integer"} if reported else set())


def test_boxes_that_are_called_dropped_are_dropped_and_negative_ones_turned(cfg, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (100,), "none"
    nan = float("nan")
    dropped = [[10.0, 10.0, 0.0, 20.0], [nan, 10.0, 20.0, 20.0], [110.0, 10.0, 20.0, 20.0], [-30.0, 10.0, 20.0, 20.0]]
    assert len(_map(cfg, tmp_path, (100, 100), dropped)) == 0
    np.testing.assert_array_equal(_map(cfg, tmp_path, (100, 100), [[40.0, 50.0, -30.0, 20.0]]), [[10, 50, 40, 70]])
    np.testing.assert_array_equal(
        _map(cfg, tmp_path, (100, 100), [[40.0, 50.0, float("inf"), 20.0]]), [[40, 50, 100, 70]]
    )


@pytest.mark.parametrize("size", [lambda w, h: (h, w), lambda w, h: (40, 30), lambda w, h: (h // 2, w // 3)])
def test_boxes_are_not_judged_by_a_size_that_is_wrong(size, random_set, cfg):
    """They would be cut, or dropped, although they fit the image."""
    original = random_set.copy_of_coco()
    for image in random_set.coco["images"]:
        if random_set.rng.uniform() < 0.7:
            image["width"], image["height"] = size(image["width"], image["height"])
    random_set.write()
    context = random_set.check(cfg)
    assert {finding.kind.name for finding in context.found} == {"image-size"}
    left = {finding.kind.name for finding in checks.repair_until_clean(context).left}
    assert left <= {"image-size"}  # in nearly the same proportion, the file may have been resized
    assert context.data.coco["annotations"] == original["annotations"]
