"""Numbers that are written as strings are converted, and nothing is dropped for them."""

import pytest

from retina_plugin.data import checks
from retina_plugin.data.checks.entries import as_id, as_numbers


@pytest.mark.parametrize("value, expected", [
    ("12", 12), (" 12 ", 12), ("12.0", 12.0), ("1e3", 1000.0), ("-.5E-1", -0.05), ("+7.", 7.0), ("٣", 3),
    (["1", [" 2 ", "x", None, 3.5]], [1, [2, "x", None, 3.5]]),
    ("[1, 2.5, \"3\"]", [1, 2.5, 3]), (" [[1],[2]]", [[1], [2]]),
    *((text, text) for text in ("[", "[1, 2", "[a]", "[" * 9999)),
    *((text, text) for text in ("", " ", "nan", "inf", "-Infinity", "1,5", "1_000", "0x10", "12 px", "1e999", "1e")),
    *((value, value) for value in (None, True, 1.5, {"a": "1"})),
])  # fmt: skip
def test_strings_of_numbers_alone_are_numbers(value, expected):
    assert as_numbers(value) == expected and type(as_numbers(value)) is type(expected)


@pytest.mark.parametrize("value, expected", [
    ("12", 12), (" 12 ", 12), ("12.0", 12), ("1e3", 1000), (12.0, 12), (12, 12), ("007", 7),
    ("1.5", "1.5"), (1.5, 1.5), ("a7", "a7"), ("nan", "nan"), (float("inf"), float("inf")), (True, True), (None, None),
])  # fmt: skip
def test_strings_of_whole_numbers_are_ids(value, expected):
    assert as_id(value) == expected and type(as_id(value)) is type(expected)


def _written(rng, value):
    if isinstance(value, list):
        return str(value) if rng.uniform() < 0.2 else [_written(rng, item) for item in value]
    forms = [repr(value), f" {value!r} ", f"{value:.17e}"] + [f"{value!r}.0"] * isinstance(value, int)
    return forms[rng.integers(len(forms))]


def test_all_numbers_as_strings_are_the_same_data_set(random_set, cfg):
    original, rng = random_set.copy_of_coco(), random_set.rng
    for image in random_set.coco["images"]:
        image.update((side, _written(rng, image[side])) for side in ("width", "height"))
        if rng.uniform() < 0.5:
            image["id"] = _written(rng, image["id"])
    random_set.coco["categories"][1]["id"] = " 2 "
    for annotation in random_set.coco["annotations"]:
        for name in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            if rng.uniform() < 0.8:
                annotation[name] = _written(rng, annotation[name])
    random_set.write()
    context = random_set.check(cfg)
    assert context.found.count(checks.ERROR)
    repaired = checks.repair_until_clean(context)
    assert list(repaired.left) == [] and context.data.coco == original and not repaired.drops_much
    assert all(type(image["id"]) is int for image in context.data.coco["images"])


def test_what_is_no_certain_number_is_not_converted(random_set, cfg):
    annotation = random_set.some()
    annotation["bbox"] = [str(v).replace(".", ",") for v in annotation["bbox"]]
    random_set.write()
    context = random_set.check(cfg)
    assert [finding.kind.name for finding in context.found] == ["box-malformed"]
    repaired = checks.repair_until_clean(context)
    assert {done for _, done in repaired.changes} == {"annotation dropped"}


@pytest.mark.parametrize("section, field", [("images", "image_id"), ("categories", "category_id")])
@pytest.mark.parametrize("zeros", [0, 3])
def test_references_take_the_type_of_what_they_refer_to(section, field, zeros, random_set, cfg):
    for entry in random_set.coco[section]:
        entry["id"] = f"{entry['id']:0{zeros}d}"
    for annotation in random_set.coco["annotations"]:
        if random_set.rng.uniform() < 0.5:
            annotation[field] = f"{annotation[field]:0{zeros}d}"
    random_set.write()
    context = random_set.check(cfg)
    errors = [finding for finding in context.found if finding.kind.severity == checks.ERROR]
    number = sum(isinstance(annotation[field], int) for annotation in random_set.coco["annotations"])
    assert [finding.kind.name for finding in errors] == ["id-type"] * number
    repaired = checks.repair_until_clean(context)
    ids = {entry["id"] for entry in random_set.coco[section]}
    assert {annotation[field] for annotation in context.data.coco["annotations"]} == ids
    assert all(after == before for after, before in repaired.sizes.values())


def test_ids_that_are_one_number_are_left_alone(random_set, cfg):
    images = random_set.coco["images"]
    images[3]["id"] = "03"
    for annotation in random_set.coco["annotations"]:
        if annotation["image_id"] == images[3 - 1]["id"]:
            annotation["image_id"] = " 3"  # of image 3 or "03"
        elif annotation["image_id"] == 4:
            annotation["image_id"] = "03"
    random_set.write()
    context = random_set.check(cfg)
    places = {finding.place()[:2] for finding in context.found if finding.kind.name == "id-type"}
    assert places == {(images[3]["file_name"], "03")}
    assert ("id-type", "id converted") not in {
        (kind.name, done) for kind, done in checks.repair_until_clean(context).changes
    }


@pytest.mark.parametrize("value, ignore, crowd", [
    ("0", 0, 0), (" 0.0 ", 0, 0), (None, 0, 0), ("", 0, 0), ("1", 0, 1), (1, 0, 1), (True, 0, 1), ("yes", "yes", 0),
])  # fmt: skip
def test_ignore_is_turned_into_iscrowd_only_if_it_is_meant(value, ignore, crowd, random_set, cfg):
    for annotation in random_set.coco["annotations"]:
        annotation["ignore"] = value
    random_set.write()
    context = random_set.check(cfg)
    assert {finding.kind.name for finding in context.found} == {"annotation-ignore"}
    checks.repair_until_clean(context)
    assert {(a["ignore"], a["iscrowd"]) for a in context.data.coco["annotations"]} == {(ignore, crowd)}
