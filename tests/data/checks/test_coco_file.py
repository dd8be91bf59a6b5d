"""A file that is no COCO file is named for what it is, with the place where reading stops."""

import json

import pytest

from retina_plugin.data import checks
from retina_plugin.data.checks.coco_file import read_coco


def _text(random_set):
    return json.dumps(random_set.coco)


# What is written in place of the file, the kind, and words of the message.
FILES = {
    "empty": (lambda s: "", "json-truncated", "empty: 0 bytes"),
    "blank": (lambda s: b"\0" * 100, "json-truncated", "100 bytes, all of them blank"),
    "without its last byte": (lambda s: _text(s)[:-1], "json-truncated", "ends at byte"),
    "cut within a string": (lambda s: _text(s)[: _text(s).index("street_003") + 5], "json-truncated", "ends at byte"),
    "cut within true": (lambda s: '{"images": [], "done": tr', "json-truncated", "ends at byte 25"),
    "comma before the end": (lambda s: _text(s)[:-1] + ",}", "json-invalid", "at byte"),
    "single quotes": (lambda s: "{'images': []}", "json-invalid", "at byte 1, line 1, column 2"),
    "not UTF-8": (lambda s: '{"images": "Zürich"}'.encode("latin-1"), "json-invalid", "not UTF-8 at byte 13"),
    "web page": (lambda s: "<html>404</html>", "json-invalid", "a web page or XML"),
    "git-lfs pointer": (lambda s: "version https://git-lfs.github.com/spec/v1\n", "json-invalid", "git lfs pull"),
    "gzip": (lambda s: b"\x1f\x8b\x08\x00\x00", "json-invalid", "a gzip archive"),
    "a list": (lambda s: json.dumps(s.coco["annotations"]), "json-not-coco", "a list, not an object"),
    "null": (lambda s: "null", "json-not-coco", "null, not an object"),
    "no images": (lambda s: json.dumps({"annotations": [], "categories": []}), "json-not-coco", "no images"),
    "category for categories": (
        lambda s: json.dumps({"images": [], "annotations": [], "category": []}),
        "json-not-coco",
        "no categories",
    ),
    "Images": (lambda s: json.dumps({"Images": []}), "json-not-coco", "no images, but Images"),
    "annotations by id": (
        lambda s: json.dumps({**s.coco, "annotations": {}}),
        "json-not-coco",
        "annotations is an object, not a list",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_coco_file_is_named(name, random_set, cfg):
    make, kind, message = FILES[name]
    random_set.write(make(random_set))
    found = checks.Findings()
    with pytest.raises(checks.CannotCheck) as stop:
        read_coco(str(random_set.json_file), found)
    print(f"| {name} | `{stop.value.kind.name}` | {stop.value.detail} |")
    assert stop.value.kind.name == kind and message in stop.value.detail and len(found) == 0


def test_a_missing_file_is_named(random_set):
    with pytest.raises(checks.CannotCheck, match="no file .*set.json") as stop:
        read_coco(str(random_set.json_file), checks.Findings())
    assert stop.value.kind.name == "json-missing"


def test_a_cut_is_told_from_a_slip_wherever_it_is(random_set):
    random_set.coco["info"]["description"] = 'Zürich, \\ "quoted" {[ true'
    text = json.dumps(random_set.coco, ensure_ascii=False, indent=1)
    data = text.encode()
    within_the_letter = data.index("ü".encode()) + 1
    for at in [within_the_letter, *random_set.rng.integers(1, len(data), 150)]:
        random_set.write(data[:at])
        with pytest.raises(checks.CannotCheck) as stop:
            read_coco(str(random_set.json_file), checks.Findings())
        assert stop.value.kind.name == "json-truncated" and f"byte {at}," in stop.value.detail


def test_the_place_of_a_slip_is_its_byte(random_set):
    random_set.coco["info"]["description"] = "Zürich"
    text = json.dumps(random_set.coco, ensure_ascii=False)
    at = text.index('"street_005') - 2
    random_set.write((text[:at] + ";" + text[at + 1 :]).encode())  # in place of the colon
    with pytest.raises(checks.CannotCheck, match=f"at byte {at + 1}, line 1") as stop:  # ü has two
        read_coco(str(random_set.json_file), checks.Findings())
    assert stop.value.kind.name == "json-invalid"


def test_a_byte_order_mark_and_nan_do_not_keep_the_rest_from_being_read(random_set):
    random_set.coco["info"]["version"] = [float("nan"), "NaN", 'a \\" NaN', -float("inf")]
    random_set.write(b"\xef\xbb\xbf" + _text(random_set).encode())
    found = checks.Findings()
    coco = read_coco(str(random_set.json_file), found)
    assert coco["annotations"] == random_set.coco["annotations"]
    assert [finding.kind.name for finding in found] == ["json-bom", "json-nan"]
    at = _text(random_set).index("NaN")
    assert list(found)[1].detail == f"2 in all, the first (NaN) at byte {at}, line 1"


def test_a_file_without_info_is_noted_and_gets_an_empty_one(random_set, cfg):
    del random_set.coco["info"]
    random_set.write()
    context = random_set.check(cfg)
    assert [(finding.kind.name, finding.kind.severity) for finding in context.found] == [("info-missing", "note")]
    assert checks.repair_until_clean(context).changes == {(checks.KINDS["info-missing"], "empty info added"): 1}
    assert context.data.coco == {**random_set.coco, "info": {}}
