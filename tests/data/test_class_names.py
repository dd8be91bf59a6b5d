"""Names of classes before a data set is loaded are those that it has afterwards."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin import ConfigError
from retina_plugin.data.class_names import class_difference_problems, class_names, common_class_names, first_difference


@pytest.fixture
def register(write):
    """register(name, {category id: class}) -> the name of a COCO file with these categories."""

    def add(name, categories):
        categories = [{"id": i, "name": c} for i, c in categories.items()]
        return write(json.dumps({"images": [], "annotations": [], "categories": categories}), name)

    return add


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
    with pytest.raises(ConfigError, match="'one' and 'other' have different classes: label 1 is 'b' in one and 'c'"):
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


@pytest.mark.parametrize(
    "categories, label, ours, theirs, advice",
    [
        ({1: "dog", 2: "cat", 3: "cow"}, 0, "'cat'", "'dog'", "the same in another order"),
        ({9: "cat", 2: "dog", 3: "cow"}, 0, "'cat'", "'dog'", "the same in another order"),  # ids decide, not places
        ({1: "cat", 2: "dog"}, 2, "'cow'", "nothing", "a class may have no annotations"),
        ({1: "cat", 2: "dog", 3: "cow", 4: "ant"}, 3, "nothing", "'ant'", "a class may have no annotations"),
        ({1: "cat", 2: "Dog", 3: "cow"}, 1, "'dog'", "'Dog'", "name sets that agree"),
        ({1: "cat", 2: "dog ", 3: "cow"}, 1, "'dog'", "'dog '", "name sets that agree"),
    ],
)
def test_other_classes_are_told_with_both_lists(register, categories, label, ours, theirs, advice):
    train, test = register("pets_train", {1: "cat", 2: "dog", 3: "cow"}), register("pets_test", categories)
    (line,) = class_difference_problems([train, test])
    assert f"label {label} is {ours} in one and {theirs} in the other" in line and advice in line
    shown = ", ".join(name for _, name in sorted(categories.items()))
    assert f"'pets_train' has 3 (cat, dog, cow); 'pets_test' has {len(categories)} ({shown})" in line


def test_names_stay_on_one_line(register):
    one, two = register("one", {1: "ca\nt\x1b[31m"}), register("two", {1: "dog"})
    (line,) = class_difference_problems([one, two])
    assert "\n" not in line and "\x1b" not in line and r"'ca\nt\x1b[31m' in one and 'dog'" in line


def test_long_lists_are_shortened(register):
    many = {i: f"c{i:03}" for i in range(500)}
    one, two = register("many", many), register("more", {**many, 400: "x"})
    (line,) = class_difference_problems([one, two])
    assert "label 400 is 'c400' in one and 'x' in the other" in line
    assert line.count("c009 and 490 more") == 2 and len(line) < 500


def test_other_ids_of_the_same_classes_agree(register):
    """Labels are the places of the ids; COCOEvaluator translates them back by the ids of its own set."""
    one, two = register("ids", {1: "cat", 2: "dog"}), register("other_ids", {30: "dog", 7: "cat"})
    assert common_class_names([one, two]) == ["cat", "dog"]
    DatasetCatalog.get(one), DatasetCatalog.get(two)
    assert common_class_names([one, two]) == ["cat", "dog"]
    assert MetadataCatalog.get(two).thing_dataset_id_to_contiguous_id == {7: 0, 30: 1}


def test_a_file_that_changes_is_read_again(register, tmp_path):
    name = register("changing", {1: "cat"})
    assert class_names(name) == ["cat"]
    coco = json.loads((tmp_path / "changing.json").read_text())
    coco["categories"].append({"id": 2, "name": "dog"})
    (tmp_path / "changing.json").write_text(json.dumps(coco))
    assert class_names(name) == ["cat", "dog"]
