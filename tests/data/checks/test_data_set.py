"""Registered data sets, COCO files or dicts, go through the same checks."""

import contextlib

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode

from retina_plugin.data import checks

from .sets import places


@pytest.fixture
def register():
    """Registers a data set; takes the names back afterwards."""
    names = []

    def register(name, load, **metadata):
        names.append(name)
        if callable(load):
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(**metadata)
        else:
            register_coco_instances(name, metadata, *load)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        with contextlib.suppress(KeyError):
            MetadataCatalog.remove(name)


def _check(name, cfg, num_classes=None):
    found = checks.Findings()
    data = checks.from_catalog(name, found)
    checks.check_data_set(checks.Context(data, cfg, found, checks.ImageFiles(), num_classes))
    return found


@pytest.fixture
def dicts(random_set):
    """The random set as Detectron2 loads it, without a name for its classes."""
    random_set.write()
    records = load_coco_json(str(random_set.json_file), str(random_set.image_root), "scratch_of_dicts")
    MetadataCatalog.remove("scratch_of_dicts")
    return records


def test_a_registered_coco_file_is_read_from_the_file(random_set, cfg, register):
    annotation = random_set.some()
    annotation["id"] = random_set.coco["annotations"][0]["id"]  # at which loading stops
    random_set.write()
    register("registered_coco", (str(random_set.json_file), str(random_set.image_root)))
    with pytest.raises(AssertionError):
        DatasetCatalog.get("registered_coco")
    found = _check("registered_coco", cfg)
    image = random_set.image_of(annotation)
    assert places(found) == {("annotation-id-duplicate", image["file_name"], image["id"], annotation["id"])}


@pytest.mark.parametrize("classes, message", [
    (["bicycle", "car", "tram"], "label 0 is 'bicycle' in thing_classes and 'car' in the file"),
    (["car", "bicycle"], "label 2 is nothing in thing_classes and 'tram' in the file"),
    (["car", "bicycle", "tram"], None),
])  # fmt: skip
def test_registered_classes_in_another_order_are_found(classes, message, random_set, cfg, register):
    random_set.write()
    register("classes_coco", (str(random_set.json_file), str(random_set.image_root)), thing_classes=classes)
    found = _check("classes_coco", cfg)
    assert [finding.detail for finding in found] == ([message] if message else [])
    if message:
        with pytest.raises(AssertionError):
            DatasetCatalog.get("classes_coco")


def test_registered_labels_that_are_not_the_files_are_found(random_set, cfg, register):
    random_set.write()
    labels = {1: 0, 2: 2, 3: 1}
    where = (str(random_set.json_file), str(random_set.image_root))
    register("labels_coco", where, thing_dataset_id_to_contiguous_id=labels)
    (finding,) = _check("labels_coco", cfg)
    assert finding.kind.name == "category-registration"
    assert finding.detail == "id 2 is label 2 in thing_dataset_id_to_contiguous_id and 1 by the file"


def test_dicts_without_a_flaw_are_clean_in_every_form_of_a_box(dicts, cfg, register):
    for record in dicts:
        for j, instance in enumerate(record["annotations"]):
            if j % 2:
                instance["bbox"] = BoxMode.convert(instance["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
                instance["bbox_mode"] = BoxMode.XYXY_ABS
                if j % 3:
                    instance["bbox"] = np.array(instance["bbox"])
    register("plain_dicts", lambda: dicts, thing_classes=["car", "bicycle", "tram"])
    assert list(_check("plain_dicts", cfg, num_classes=3)) == []
    register("unnamed_dicts", lambda: dicts)
    assert list(_check("unnamed_dicts", cfg, num_classes=3)) == []


DICTS = {
    "corners said to be sides": (
        lambda i: i.update(bbox=[i["bbox"][0], i["bbox"][1], 500.0, 500.0]),
        "box-partly-outside",
    ),
    "sides said to be corners": (
        lambda i: i.update(bbox_mode=BoxMode.XYXY_ABS, bbox=[90.0, 80.0, 30.0, 40.0]),
        "box-negative",
    ),
    "fractions": (lambda i: i.update(bbox_mode=BoxMode.XYXY_REL), "box-malformed"),
    "no mode": (lambda i: i.pop("bbox_mode"), "box-malformed"),
    "no box": (lambda i: i.pop("bbox"), "field-missing"),
    "no class": (lambda i: i.pop("category_id"), "field-missing"),
    "class out of range": (lambda i: i.update(category_id=3), "category-unknown"),
    "negative class": (lambda i: i.update(category_id=-1), "category-unknown"),
    "NaN": (lambda i: i.update(bbox=[float("nan"), *i["bbox"][1:]]), "box-not-finite"),
    "integers": (lambda i: i.update(bbox=[10, 12, 61, 60]), "box-integer"),
}


@pytest.mark.parametrize("name", DICTS)
def test_a_flaw_in_dicts_is_found_where_it_is(name, dicts, random_set, cfg, register):
    change, kind = DICTS[name]
    record = dicts[int(random_set.rng.integers(1, len(dicts)))]
    change(record["annotations"][1])
    register("flawed_dicts", lambda: dicts, thing_classes=["car", "bicycle", "tram"])
    found = _check("flawed_dicts", cfg)
    print(f"| dicts: {name} | `{next(iter(found)).kind.name}` | {next(iter(found)).detail} |")
    of_boxes = {place[:3] for place in places(found)} - {("boxes-dropped", None, None)}
    assert of_boxes == {(kind, record["file_name"], record["image_id"])}


def test_a_missing_file_of_a_dict_is_found(dicts, cfg, random_set, register):
    (random_set.image_root / "street_003.jpg").unlink()
    register("files_of_dicts", lambda: dicts, thing_classes=["car", "bicycle", "tram"])
    assert places(_check("files_of_dicts", cfg)) == {("image-missing", dicts[2]["file_name"], 3, None)}
