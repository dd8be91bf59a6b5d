"""Every flaw is found by its name, in its place, and nothing else is; what can be repaired is, and nothing else."""

import contextlib
import io
import json

import pytest
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retina_plugin.data import checks
from retina_plugin.data.checks.context import CHECKS
from retina_plugin.data.checks.repair import REPAIRS
from retina_plugin.data.checks.run import ORDER

from .cases import CASES
from .sets import hashable, places


@pytest.mark.parametrize("name", CASES)
def test_a_flaw_is_found_where_it_is_and_repaired_alone(name, random_set, cfg, tmp_path):
    case = CASES[name]
    expected = case.flaw(random_set)
    random_set.write()
    original = json.loads(random_set.json_file.read_text())
    context = random_set.check(cfg, case.num_classes)
    found, data = context.found, context.data
    for kind, findings in found.by_kind().items():
        print(f"| {name.replace('_', ' ')} | `{kind.name}` | {findings[0].detail} |")
    expected_places = {
        (
            kind,
            hashable(_get(image, "file_name")),
            hashable(_get(image, "id", _get(annotation, "image_id"))),
            _get(annotation, "id"),
        )
        for kind, image, annotation in expected
    }
    assert places(found) == expected_places
    named = _named(found)

    left = checks.repair_until_clean(context).left
    assert {finding.kind.name for finding in left} == set(case.left)
    if checks.KINDS["boxes-xyxy"] in found.by_kind():
        return  # which is about all boxes
    assert list(data.coco) == list(original) and data.coco["info"] == original["info"]
    for section, ids in named.items():
        before, after = (list(dict.fromkeys(map(json.dumps, coco[section]))) for coco in (original, data.coco))
        assert [entry for entry in before if entry in set(after)] == [entry for entry in after if entry in set(before)]
        changed = [json.loads(entry) for entry in before if entry not in set(after)]
        assert len(after) - len(set(after) & set(before)) <= len(changed)
        for entry in filter(None, changed):
            assert entry.get("id") in ids or entry.get("image_id") in named["images"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.stops])
def test_detectron2_stops_where_the_check_says_so_and_not_at_the_corrected_copy(name, random_set, cfg, tmp_path):
    case = CASES[name]
    case.flaw(random_set)
    random_set.write()
    context = random_set.check(cfg)
    found = context.found
    assert any(kind.severity == checks.ERROR for kind in found.by_kind())
    images = {finding.place()[1] for finding in found if not isinstance(finding.place()[1], list)} - {None}
    with pytest.raises(Exception):  # noqa: B017  of many kinds
        _use(case.stops, random_set.json_file, random_set.image_root, cfg, images, tmp_path)
    if not any(checks.KINDS[kind].severity == checks.ERROR for kind in case.left):
        checks.repair_until_clean(context)
        corrected = tmp_path / "corrected.json"
        corrected.write_text(json.dumps(context.data.coco))
        for stage in ("load", "map", "evaluate"):
            _use(stage, corrected, random_set.image_root, cfg, images, tmp_path)


def _use(stage, json_file, image_root, cfg, images, tmp_path):
    """What training and evaluation do with a set: load it, map the images of these ids, evaluate perfect detections."""
    name = f"{tmp_path.name}_{json_file.stem}"
    MetadataCatalog.pop(name, None)
    records = load_coco_json(str(json_file), str(image_root), name)
    assert any(annotation["iscrowd"] == 0 for record in records for annotation in record["annotations"])
    if stage == "map":
        mapper = DatasetMapper(cfg, is_train=True)
        for record in records:
            if record["image_id"] in images or not images:
                mapper(record)
    if stage == "evaluate":
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(json_file))
            keys = ("image_id", "category_id", "bbox")
            detections = [{**{key: a[key] for key in keys}, "score": 0.9} for a in truth.dataset["annotations"]]
            evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[1] == pytest.approx(1)


def _get(entry, field, default=None):
    return default if entry is None else entry.get(field, default)


def _named(found):
    """The ids of entries that findings are about, and of annotations of images that they are about."""
    named = {"images": set(), "annotations": set(), "categories": set()}
    for finding in found:
        _, image_id, annotation_id, category_id = map(hashable, finding.place())
        named["annotations"].add(annotation_id)
        if finding.annotation is None:
            named["images"].add(image_id)
            named["categories"].add(category_id)
    return named


def test_there_is_nothing_to_find_in_random_sets(random_set, cfg):
    random_set.write()
    context = random_set.check(cfg, num_classes=3)
    assert list(context.found) == []
    changes, left, _ = checks.repair_until_clean(context)
    assert changes == {} and list(left) == [] and context.data.coco == random_set.coco


def test_every_check_has_its_place_in_the_order():
    assert set(ORDER) == set(CHECKS) and len(ORDER) == len(CHECKS)


def test_every_kind_with_a_promised_repair_has_one_and_no_other():
    """The repair of a kind is said in its text: "--fix does", "--fix drops ..."."""
    assert {kind.name for kind in REPAIRS} == {kind.name for kind in checks.KINDS.values() if "--fix" in kind.text}
