"""Names of classes before a data set is loaded are those that it has afterwards."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from retina_plugin.data.class_names import class_names, common_class_names, first_difference


@pytest.fixture
def register(tmp_path):
    """register(name, {category id: class}) -> the name of a COCO file with these categories."""
    names = []

    def add(name, categories):
        path = tmp_path / f"{name}.json"
        categories = [{"id": i, "name": c} for i, c in categories.items()]
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_order_is_that_of_the_labels(register):
    name = register("unsorted", {9: "cow", 3: "cat", 7: "dog"})
    before = class_names(name)
    DatasetCatalog.get(name)
    assert before == ["cat", "dog", "cow"] == MetadataCatalog.get(name).thing_classes == class_names(name)


def test_nothing_tells(register, tmp_path):
    assert class_names("no such set") is None and common_class_names(["no such set"]) is None
    assert common_class_names([]) is None


def test_sets_have_one_list_in_common(register):
    one, two = register("one", {1: "a", 2: "b"}), register("two", {5: "a", 6: "b"})
    assert common_class_names([one, "no such set", two]) == ["a", "b"]
    other = register("other", {1: "a", 2: "c", 3: "d"})
    with pytest.raises(ValueError, match="'one' and 'other' have different classes: label 1 is 'b' in one and 'c'"):
        common_class_names([one, two, other])


@pytest.mark.parametrize(
    "names, others, expected",
    [
        (["a", "b"], ("a", "b"), None),
        (["a", "b"], ["b", "a"], (0, "'a'", "'b'")),
        (["a"], ["a", "b"], (1, "nothing", "'b'")),
        (["a", "b"], ["a"], (1, "'b'", "nothing")),
    ],
)
def test_first_difference(names, others, expected):
    assert first_difference(names, others) == expected
