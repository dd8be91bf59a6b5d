"""Errors of loading a data set name the set, the cause and where it is."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances

from retina_plugin import ConfigError
from retina_plugin.data.loading import explain_loading


@pytest.fixture
def coco():
    box = {"bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in (1, 2, 3)],
        "annotations": [{"id": i, "image_id": 1 + i % 3, "category_id": 1 + i % 2, **box} for i in range(6)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.fixture
def load(tmp_path):
    """load(COCO dict or function) -> what Detectron2's loading raises, explained."""

    def load(data):
        if callable(data):
            DatasetCatalog.register("loaded", data)
        else:
            (tmp_path / "loaded.json").write_text(json.dumps(data))
            register_coco_instances("loaded", {}, str(tmp_path / "loaded.json"), str(tmp_path))
        with explain_loading("DATASETS.TRAIN", ["loaded"]):
            return get_detection_dataset_dicts(["loaded"])

    yield load
    if "loaded" in DatasetCatalog:
        DatasetCatalog.remove("loaded")
    MetadataCatalog.pop("loaded", None)


def problem(load, data):
    with pytest.raises(ConfigError) as error:
        load(data)
    (line,) = error.value.problems
    assert "\n" not in line
    return line


def test_a_sound_set_is_loaded(load, coco):
    assert len(load(coco)) == 3


def test_nothing_to_train_on(load, coco):
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    assert (
        "none of the 3 images of DATASETS.TRAIN (loaded) has an object to train on: they have 6 annotations, all of"
        in (problem(load, coco))
    )


def test_no_annotations(load, coco):
    coco["annotations"].clear()
    assert "they have no annotations. Correct" in problem(load, coco)


def test_no_images(load, coco):
    coco["images"].clear()
    assert problem(load, coco).startswith("data set 'loaded' of DATASETS.TRAIN is empty: it has no images.")


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda coco: coco["annotations"][1].update(id=0), "Annotation ids in '"),
        (lambda coco: coco["annotations"][1].update(category_id=99), "Encountered category_id=99"),
        (lambda coco: coco.pop("categories"), "KeyError: 'categories'"),
    ],
)
def test_what_detectron2_says_of_a_file(load, coco, change, what):
    change(coco)
    line = problem(load, coco)
    assert line.startswith("data set 'loaded' of DATASETS.TRAIN cannot be loaded: ") and what in line
    assert line.endswith("`python -m retina_plugin check-data loaded` says what is wrong")


def broken():
    return [{}["file_name"]]


def test_an_error_in_a_function_of_ones_own_says_where(load):
    assert f"KeyError: 'file_name' ({__file__}, line {broken.__code__.co_firstlineno + 1}, in broken)" in problem(
        load, broken
    )


@pytest.mark.parametrize("returned", [None, [3, 4], 7])
def test_what_is_not_a_list_of_dicts(load, returned):
    assert "is not a list of dicts, one for each image: its function returned" in problem(load, lambda: returned)


def test_dicts_that_detectron2_cannot_filter(load):
    record = {"file_name": "a.jpg", "image_id": 1, "width": 9, "height": 9}
    line = problem(load, lambda: [{**record, "annotations": []}, record])
    assert line == "DATASETS.TRAIN (loaded) cannot be used: KeyError: 'annotations'"


def test_other_errors_stay_what_they_are(load, coco):
    load(coco)
    with pytest.raises(ZeroDivisionError), explain_loading("DATASETS.TRAIN", ["loaded"]):
        print(1 / 0)
