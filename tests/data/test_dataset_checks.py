"""Data sets that cannot be used are told before a job starts."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from retina_plugin import add_retina_config
from retina_plugin.data.class_names import class_names
from retina_plugin.data.dataset_checks import class_problems, data_problems


def make_coco(*names):
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return json.dumps({"images": [], "annotations": [], "categories": categories})


@pytest.mark.parametrize(
    "text, what",
    [
        ("", "is not JSON (Expecting value"),
        ('{"images": [}', "is not JSON (Expecting value"),
        (b"\xff\xfe\x00", "is not JSON ("),
        ("[" * 200_000, "is not JSON ("),
        ("[]", "it holds a list, not an object"),
        ("{}", "it has no list 'images'"),
        ('{"images": []}', "it has no list 'categories'"),
        ('{"images": [], "categories": ["cat"]}', "it has no list 'categories' of objects"),
        ('{"images": [], "categories": [{"name": "cat"}]}', "a category has no 'id'"),
        ('{"images": [], "categories": [{"id": 1}]}', "a category has no 'name'"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": "2", "name": "b"}]}', "of different types"),
    ],
)
def test_a_file_that_is_not_cocos(write, text, what):
    name = write(text)
    (line,) = data_problems([name])
    assert line.startswith(f"data set '{name}': ") and what in line
    assert class_names(name) is None


def test_a_file_of_another_form_with_names_of_its_own_is_left_alone(write):
    name = write("[]")
    MetadataCatalog.get(name).thing_classes = ["a"]
    assert not list(data_problems([name])) and class_names(name) == ["a"]


def test_a_number_of_classes_is_told_once_and_only_of_sets_that_agree(write):
    """Else the advice for one set would contradict that for the other."""
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    train, test = write(make_coco("cat", "dog"), "two_train"), write(make_coco("cat"), "one_test")
    difference, count = class_problems(cfg, [train, train, test])
    assert "'two_train' and 'one_test' have different classes: label 1 is 'dog' in one and nothing" in difference
    assert count.startswith("MODEL.RETINANET.NUM_CLASSES is 80, but data set 'two_train' has 2 classes")
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    assert list(class_problems(cfg, [train, test])) == [difference]
    assert not list(class_problems(cfg, [train]))
