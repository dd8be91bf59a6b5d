"""Grids of images: they show what is in the files, and files of something else are refused."""

import json

import numpy as np
import pytest

import retina_plugin  # noqa: F401  isort: skip

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from retina_plugin.tools.visualize import grid
from retina_plugin.tools.visualize.grid import draw_grid

NAME = "contact_sheet_test"
SIZES = [(100, 100), (80, 40), (30, 60), (400, 400), (50, 50)]  # width, height
TILE = 120
RESULT = '[{"image_id": 10, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5, %s}]'  # the last of two counts


@pytest.fixture
def dataset(tmp_path):
    """Five gray images with one object each, the categories 3 (cat) and 7 (dog)."""
    images, annotations = [], []
    for i, (width, height) in enumerate(SIZES):
        Image.new("RGB", (width, height), (90, 90, 90)).save(tmp_path / f"{i}.png")
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": width, "height": height})
        box = [width // 4, height // 4, width // 2, height // 2]
        area = box[2] * box[3]
        annotation = {"id": i + 1, "image_id": 10 + i, "category_id": 3, "bbox": box, "area": area}
        annotations.append({**annotation, "iscrowd": 0})
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    json_file = tmp_path / "set.json"
    json_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_instances(NAME, {}, str(json_file), str(tmp_path))
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def draw(dataset, tmp_path):
    """Draws a sheet of the given detections and returns it as an array (height, width, 3)."""

    def draw(detections, **options):
        predictions = tmp_path / "predictions.json"
        predictions.write_text(json.dumps(detections))
        path = draw_grid(dataset, predictions, tmp_path / "sheet.png", tile_size=TILE, **options)
        with Image.open(path) as sheet:
            assert sheet.format == "PNG"
            return np.asarray(sheet.convert("RGB")).astype(int)

    return draw


def detection(image_id=10, category_id=7, bbox=(20, 60, 50, 30), score=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


def changed_rows_and_columns(one, two):
    # The palettes of two sheets differ a little, a drawn line differs a lot.
    rows, columns = np.nonzero(np.abs(one - two).max(axis=2) > 60)
    return rows, columns


def test_sheet_has_a_tile_for_each_image_in_rows(draw):
    narrow, wide = draw([], columns=2), draw([], columns=5)
    # Five tiles: three rows of two, or one row of five.
    step = TILE + grid.GAP
    assert narrow.shape == (grid._HEADER + 3 * step, grid.GAP + 2 * step, 3)
    assert wide.shape == (grid._HEADER + 1 * step, grid.GAP + 5 * step, 3)


def test_image_without_detections_shows_its_ground_truth(draw):
    tile = draw([], num_images=1)[grid._HEADER :]
    assert (tile > 240).all(axis=2).sum() > 50


def test_a_detection_is_drawn_at_its_box_and_nowhere_else(draw):
    rows, columns = changed_rows_and_columns(draw([], num_images=1), draw([detection()], num_images=1))
    in_tile = rows >= grid._HEADER  # the counts change, too
    rows, columns = rows[in_tile] - grid._HEADER, columns[in_tile] - grid.GAP
    # The image is 100x100 and its tile 120x120, so the box covers columns 24 to 83 and rows 72 to 107.
    assert (columns.min(), columns.max(), rows.max()) == (24, 83, 107)
    assert 72 - 16 <= rows.min() < 72  # the label is above


def test_a_detection_of_another_class_has_another_color(draw):
    cat, dog = (draw([detection(category_id=c)], num_images=1) for c in (3, 7))
    rows, _ = changed_rows_and_columns(cat, dog)
    assert len(rows) > 100


def test_detections_below_the_threshold_are_left_out(draw):
    without = draw([], score_threshold=0.6)
    assert (draw([detection(score=0.59)], score_threshold=0.6) == without).all()
    assert len(changed_rows_and_columns(draw([detection(score=0.6)], score_threshold=0.6), without)[0]) > 100


def test_images_are_spread_over_the_set_and_the_same_every_time(draw):
    # Two of five: the first and the last.
    without = draw([], num_images=2)
    assert (draw([], num_images=2) == without).all()
    for image_id, shown in [(10, True), (12, False), (14, True)]:
        sheet = draw([detection(image_id, bbox=(5, 5, 20, 20))], num_images=2)
        assert (len(changed_rows_and_columns(sheet, without)[0]) > 0) == shown


def test_boxes_beyond_the_image_are_drawn_as_far_as_they_are_inside(draw):
    boxes = [(-10, -10, 500, 500), (99.9, 99.9, 0.01, 0.01)]
    sheet = draw([detection(bbox=box) for box in boxes], num_images=1)
    assert len(changed_rows_and_columns(sheet, draw([], num_images=1))[0]) > 0


def test_makes_the_folder_of_the_sheet(dataset, tmp_path):
    (tmp_path / "predictions.json").write_text("[]")
    sheet = tmp_path / "new" / "folder" / "sheet.png"
    path = draw_grid(dataset, tmp_path / "predictions.json", sheet)
    assert path == sheet and sheet.is_file()


# --- what it refuses -----------------------------------------------------


def test_says_where_the_missing_predictions_come_from(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="COCOEvaluator writes it as coco_instances_results.json"):
        draw_grid(dataset, tmp_path / "none.json", tmp_path / "sheet.png")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{not json", "is not JSON"),
        ('{"annotations": []}', "not a COCO result list"),
        (
            '[{"image_id": 10, "category_id": 3, "bbox": [0, 0, 1, 1]}]',
            "entry 0 is no object with image_id, category_id, bbox, score",
        ),
        (RESULT % '"score": "high"', "entry 0 is no object with image_id, category_id, bbox, score"),
        (RESULT % '"bbox": [1, 2, 3]', "entry 0 is no object with"),
        (RESULT % '"bbox": [1, 2, 3, NaN]', "entry 0 is no object with"),
        (RESULT % '"image_id": [1]', "entry 0 is no object with"),
        (RESULT % '"category_id": {}', "entry 0 is no object with"),
        ("[" * 100000, "is not JSON"),
        ("[1, 2]", "not a COCO result list"),
    ],
)
def test_refuses_a_file_that_is_not_a_coco_result_list(dataset, tmp_path, text, message):
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        draw_grid(dataset, tmp_path / "predictions.json", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_refuses_predictions_of_another_data_set(draw):
    with pytest.raises(ValueError, match=r"1 image id\(s\) .* contact_sheet_test, such as 99:"):
        draw([detection(), detection(image_id=99)])
    with pytest.raises(ValueError, match=r"1 category id\(s\) .* contact_sheet_test, such as 1:"):
        draw([detection(), detection(category_id=1)])
