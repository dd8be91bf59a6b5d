"""XYXY and fractions are recognized, and COCO's own boxes never taken for them."""

import json

import numpy as np
import pytest

from retina_plugin.data import checks
from retina_plugin.data.checks.boxes import check_box_format
from retina_plugin.data.checks.entries import Entries


def _recognized(boxes, sizes):
    images = [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    annotations = [{"id": i, "image_id": i, "bbox": box} for i, box in enumerate(boxes.tolist())]
    context = checks.Context(None, None, checks.Findings(), entries=Entries(images, annotations, []))
    check_box_format(context)
    kinds = [kind.name for kind in context.found.by_kind()]
    assert len(context.table) == (0 if kinds else len(boxes)), "boxes of another format cannot be checked further"
    return kinds


@pytest.fixture
def boxes(random_set):
    """A function that draws boxes (number, 4), XYWH, of any share of random images, and the images' sizes."""

    def draw(number, largest=1.0):
        sizes = random_set.rng.integers(50, 2000, (number, 2))
        sides = random_set.rng.uniform(0.01, largest, (number, 2)) * sizes
        corner = random_set.rng.uniform(0, 1, (number, 2)) * (sizes - sides)
        return np.concatenate([corner, sides], axis=1), sizes

    return draw


def _corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def test_boxes_as_coco_has_them_are_taken_as_they_are(boxes):
    for number in (1, 2, 5, 9, 10, 12, 20, 1000):
        for largest in (0.05, 0.3, 1.0):
            for _ in range(20):
                assert _recognized(*boxes(number, largest)) == []


def test_corners_are_recognized_whatever_the_size_of_the_boxes(boxes):
    for number in (40, 1000):
        for largest in (0.05, 0.3, 0.9):
            drawn, sizes = boxes(number, largest)
            assert _recognized(_corners(drawn), sizes) == ["boxes-xyxy"]


def test_corners_with_a_few_slips_are_recognized(boxes):
    drawn, sizes = boxes(1000, 0.3)
    corners = _corners(drawn)
    corners[:5, 2:] = 0
    assert _recognized(corners, sizes) == ["boxes-xyxy"]


def test_sides_among_which_many_are_wrong_are_no_corners(boxes):
    drawn, sizes = boxes(1000)
    drawn[:300, :2] += 0.6 * sizes[:300]
    assert _recognized(drawn, sizes) == []


def test_fractions_are_recognized_and_unit_boxes_of_whole_pixels_are_none(boxes):
    drawn, sizes = boxes(50)
    assert _recognized(drawn / np.tile(sizes, 2), sizes) == ["boxes-fractions"]
    assert _recognized(_corners(drawn) / np.tile(sizes, 2), sizes) == ["boxes-fractions"]
    assert _recognized(np.tile([[0.0, 0.0, 1.0, 1.0]], (50, 1)), sizes) == []


def test_the_corrected_copy_of_corners_has_the_original_boxes_and_areas(random_set, cfg):
    expected = random_set.copy_of_coco()
    for annotation in random_set.coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    random_set.write()
    context = random_set.check(cfg)
    data = context.data
    changes, left, _ = checks.repair_until_clean(context)
    assert list(left) == [] and len(changes) == 1
    for ours, theirs in zip(data.coco["annotations"], expected["annotations"]):
        assert ours["bbox"] == pytest.approx(theirs.pop("bbox"), abs=1e-9)
        del ours["bbox"]
        assert ours == theirs
    assert json.dumps(data.coco["images"]) == json.dumps(expected["images"])
