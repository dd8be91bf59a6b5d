"""What stops Detectron2 or COCO's evaluation, or makes AP wrong, is an error; what does not is none."""

import copy
import decimal
import json
import pathlib
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode

from retina_plugin.data import checks

from .readers import read

ODD = [None, "", "1", "x", " 7 ", 0, -1, 1.5, float("inf"), float("nan"), True, [], [1], ["a"], [[1]], [None], {}, "٣"]
ODD += [{"a": 1}, {"size": [100, 120], "counts": "abc"}, {"counts": [1, 2]}, 2**70, 1e300, str(uuid.uuid4())]
FIELDS = {
    "images": ["id", "file_name", "width", "height", "license"],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints", "ignore"],
    "categories": ["id", "name", "supercategory"],
}
FIELDS["annotations"] += [("bbox", i) for i in range(4)] + [("keypoints", 0), ("keypoints", 2), ("segmentation", 0)]
GOOD = {"keypoints": [1, 2, 2, 3, 4, 2], "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]}


def _put(entry, field, value):
    if isinstance(field, tuple):
        entry.setdefault(field[0], copy.deepcopy(GOOD.get(field[0])))[field[1]] = value
    else:
        entry[field] = value


def test_every_odd_value_that_stops_a_reader_is_an_error_and_without_errors_none_stops(random_set, cfg, tmp_path):
    rng, good, unseen = random_set.rng, random_set.copy_of_coco(), []
    places = [(section, field) for section, fields in FIELDS.items() for field in fields]
    for i in rng.permutation(len(places) * len(ODD))[:20]:
        (section, field), value = places[i // len(ODD)], copy.deepcopy(ODD[i % len(ODD)])
        random_set.coco = copy.deepcopy(good)
        entry = random_set.some(section)
        old = entry["id"]
        _put(entry, field, value)
        for annotation in random_set.coco["annotations"]:  # what refers to an entry goes with it
            reference = {"images": "image_id", "categories": "category_id"}.get(section)
            if field == "id" and reference and annotation[reference] == old:
                annotation[reference] = value
        random_set.write()
        context = random_set.check(cfg)
        stop = _read(random_set, cfg, tmp_path)
        if stop and not context.found.count(checks.ERROR):
            unseen.append((section, field, value, stop))
        left = checks.repair_until_clean(context).left
        random_set.coco = context.data.coco
        random_set.write()
        stop = _read(random_set, cfg, tmp_path)
        if stop and not left.count(checks.ERROR):
            unseen.append((section, field, value, f"repaired, {stop}"))
    assert unseen == []


def _read(random_set, cfg, tmp_path):
    name = f"read_{tmp_path.name}"
    register_coco_instances(name, {}, str(random_set.json_file), str(random_set.image_root))
    stop = read(name, cfg, tmp_path)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    return stop


def _each(field, change):
    return lambda record: record.update({field: change(record[field])})


def _boxes(change):
    return lambda record: [instance.update(bbox=change(instance["bbox"])) for instance in record["annotations"]]


def _instances(**fields):
    def change(record):
        for instance in record["annotations"]:
            instance.update((name, copy.deepcopy(value)) for name, value in fields.items())

    return change


def _corners(change):
    def convert(record):
        for instance in record["annotations"]:
            corners = BoxMode.convert(instance["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            instance.update(bbox=change(corners), bbox_mode=BoxMode.XYXY_ABS)

    return convert


POLYGON = [10.0, 10.0, 60.0, 10.0, 60.0, 60.0]
DICTS = {
    "plain": lambda record: None,
    "ids of NumPy": _each("image_id", np.int64),
    "ids of torch": _each("image_id", torch.tensor),
    "float32 ids": _each("image_id", np.float32),
    "string ids": _each("image_id", str),
    "UUIDs": _each("image_id", lambda value: uuid.UUID(int=value)),
    "tuples as ids": _each("image_id", lambda value: (1, value)),
    "no image id": lambda record: record.pop("image_id"),
    "sides of NumPy": lambda r: r.update(width=np.int32(r["width"]), height=np.int32(r["height"])),
    "float32 sides": lambda r: r.update(width=np.float32(r["width"]), height=np.float32(r["height"])),
    "tensors as sides": lambda r: r.update(width=torch.tensor(r["width"]), height=torch.tensor(r["height"])),
    "string sides": lambda r: r.update(width=str(r["width"]), height=str(r["height"])),
    "no sides": lambda r: (r.pop("width"), r.pop("height")),
    "sides are null": lambda r: r.update(width=None, height=None),
    "paths": _each("file_name", pathlib.Path),
    "tuple of annotations": _each("annotations", tuple),
    "annotations are null": _each("annotations", lambda instances: None),
    "an annotation is null": _each("annotations", lambda instances: [*instances, None]),
    "annotations by number": _each("annotations", lambda instances: dict(enumerate(instances))),
    "classes of NumPy": lambda r: [a.update(category_id=np.int64(a["category_id"])) for a in r["annotations"]],
    "uint8 classes": lambda r: [a.update(category_id=np.uint8(a["category_id"])) for a in r["annotations"]],
    "float classes": lambda r: [a.update(category_id=float(a["category_id"])) for a in r["annotations"]],
    "iscrowd of NumPy": _instances(iscrowd=np.int64(0)),
    "iscrowd is a bool": _instances(iscrowd=False),
    "iscrowd is a bool of NumPy": _instances(iscrowd=np.bool_(False)),
    "iscrowd is null": _instances(iscrowd=None),
    "no iscrowd": lambda record: [instance.pop("iscrowd") for instance in record["annotations"]],
    "tuples as boxes": _boxes(tuple),
    "arrays as boxes": _boxes(np.array),
    "tensors as boxes": _boxes(torch.tensor),
    "lists of NumPy's numbers": _boxes(lambda box: [np.float32(value) for value in box]),
    "strings in boxes": _boxes(lambda box: [*box[:3], str(box[3])]),
    "arrays as corners": _corners(np.array),
    "float32 arrays as corners": _corners(lambda box: np.array(box, dtype=np.float32)),
    "mode as a number": _instances(bbox_mode=1),
    "mode as text": _instances(bbox_mode="XYWH_ABS"),
    "polygons": _instances(segmentation=[POLYGON]),
    "polygons as arrays": _instances(segmentation=[np.array(POLYGON)]),
    "polygons of strings": _instances(segmentation=[list(map(str, POLYGON))]),
    "polygon without a list": _instances(segmentation=POLYGON),
    "polygon of two points": _instances(segmentation=[POLYGON[:4]]),
    "no polygon": _instances(segmentation=[]),
    "mask is null": _instances(segmentation=None),
    "mask as an array": _instances(segmentation=np.ones((9, 9), dtype=bool)),
    "RLE": _instances(segmentation={"size": [9, 9], "counts": b"0i2"}),
    "RLE as text": _instances(segmentation={"size": [9, 9], "counts": "0i2"}),
    "RLE of counts": _instances(segmentation={"size": [9, 9], "counts": [9, 9, 63]}),
    "RLE without size": _instances(segmentation={"counts": b"0i2"}),
    "keypoints": _instances(keypoints=[1, 2, 2, 3, 4, 0]),
    "keypoints as an array": _instances(keypoints=np.array([1.0, 2.0, 2.0])),
    "keypoints as a tuple": _instances(keypoints=(1, 2, 2)),
    "keypoints in threes": _instances(keypoints=[[1, 2, 2], [3, 4, 0]]),
    "keypoints are null": _instances(keypoints=None),
    "decimals in boxes": _boxes(lambda box: [decimal.Decimal(str(value)) for value in box]),
}


@pytest.fixture
def records(random_set):
    """The random set as Detectron2 loads it."""
    random_set.write()
    records = load_coco_json(str(random_set.json_file), str(random_set.image_root), "scratch_of_readers")
    MetadataCatalog.remove("scratch_of_readers")
    return records


@pytest.fixture
def registered(records, tmp_path):
    """A data set that returns the records as they are when it is loaded."""
    name = f"dicts_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: copy.deepcopy(records))
    MetadataCatalog.get(name).thing_classes = ["car", "bicycle", "tram"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


def _check(name, cfg):
    found = checks.Findings()
    data = checks.from_catalog(name, found)
    checks.check_data_set(checks.Context(data, cfg, found, checks.ImageFiles()), anchors=False)
    return found


@pytest.mark.parametrize("change", DICTS)
@pytest.mark.parametrize("every", [True, False])
def test_dicts_have_errors_exactly_if_a_reader_stops(change, every, records, registered, cfg, tmp_path):
    for record in records if every else records[2:3]:
        DICTS[change](record)
    errors = sorted({f.kind.name for f in _check(registered, cfg) if f.kind.severity == checks.ERROR})
    stop = read(registered, cfg, tmp_path / "out")
    assert bool(errors) == bool(stop), (errors, stop)


def test_annotations_in_some_dicts_alone_are_an_error(records, registered, cfg, tmp_path):
    del records[3]["annotations"]
    kinds = [finding.kind.name for finding in _check(registered, cfg)]
    assert kinds == ["field-missing", "image-without-boxes"]
    assert read(registered, cfg, tmp_path / "out").startswith("load stops: KeyError: 'annotations'")


def test_dicts_without_annotations_are_a_test_set(records, registered, cfg):
    for record in records:
        del record["annotations"]
    assert [finding.kind.name for finding in _check(registered, cfg)] == ["annotations-missing"]


@pytest.mark.parametrize("change, message", [
    (iter, "returns list_iterator"), (lambda records: None, "returns NoneType"), (enumerate, "returns enumerate"),
    (lambda records: list(enumerate(records)), "an item of .* is tuple"),
    (lambda records: [*records, None], "an item of .* is NoneType"),
])  # fmt: skip
def test_what_is_no_list_of_dicts_is_named(change, message, records, tmp_path):
    name = f"no_list_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: change(records))
    with pytest.raises(checks.CannotCheck, match=message) as stop:
        checks.from_catalog(name, checks.Findings())
    assert stop.value.kind.name == "dicts-no-list"
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_test_set_without_annotations_loads_and_is_no_error(random_set, cfg):
    del random_set.coco["annotations"]
    random_set.write()
    context = random_set.check(cfg)
    assert [finding.kind.name for finding in context.found] == ["annotations-missing"]
    assert len(load_coco_json(str(random_set.json_file), "")) == len(random_set.coco["images"])
    assert checks.repair_until_clean(context).changes == {} and context.data.coco == random_set.coco
    random_set.coco["annotation"] = []
    random_set.write()
    with pytest.raises(checks.CannotCheck, match="no annotations, but annotation"):
        random_set.check(cfg)


REPAIRED = {
    "keypoints": [
        ([[1, 2, 2], [3, 4, 0]], [1, 2, 2, 3, 4, 0]),
        (["1", " 2.5 ", 2], [1, 2.5, 2]),
        ([None, None, 0], None),
        ({"nose": [1, 2, 2]}, None),
    ],
    "segmentation": [
        (["10", "10", "60", "10", "60", "60"], [[10, 10, 60, 10, 60, 60]]),
        ({"size": ["9", 9], "counts": ["9", "9", "63"]}, {"size": [9, 9], "counts": [9, 9, 63]}),
        ({"size": ["9", "x"], "counts": [9, 9, 63]}, None),
        ({"size": [9, 9]}, None),
        (3, None),
        ([[10.0, 10.0], []], None),
    ],
}


@pytest.mark.parametrize("field, value, expected", [(f, *pair) for f, pairs in REPAIRED.items() for pair in pairs])
def test_masks_and_keypoints_are_corrected_or_removed_and_the_box_stays(field, value, expected, random_set, cfg):
    annotation = random_set.some()
    good = dict(annotation)
    annotation.update({field: value})
    random_set.write()
    context = random_set.check(cfg)
    assert [f.annotation["id"] for f in context.found if f.kind.severity == checks.ERROR] == [annotation["id"]]
    assert len(checks.repair_until_clean(context).left) == 0
    if expected is not None:
        good[field] = expected
    (repaired,) = [a for a in context.data.coco["annotations"] if a["id"] == annotation["id"]]
    assert json.dumps(repaired, sort_keys=True) == json.dumps(good, sort_keys=True)
