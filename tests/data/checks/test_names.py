"""A name of no file is corrected if it can mean one file alone, whatever its spelling and folder."""

import re
import unicodedata
from urllib.parse import quote

import pytest
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image

from retina_plugin.data import checks

SPELLINGS = {
    "parents and backslashes": lambda name: "..\\..\\label-studio\\media\\upload\\4\\" + name.replace("/", "\\"),
    "parents": lambda name: "../../label-studio/media/upload/4/" + name,
    "folders of a tool": lambda name: "data/local-files/upload/" + name,
    "query of a tool": lambda name: "/data/local-files/?d=" + quote("upload/" + name, safe=""),
    "backslashes": lambda name: name.replace("/", "\\") if "/" in name else ".\\" + name,
    "both slashes": lambda name: "labels\\a/" + name,
    "absolute": lambda name: "/home/someone/images/" + name,
    "drive": lambda name: "C:\\Users\\Some One\\images\\" + name.replace("/", "\\"),
    "address": lambda name: "https://example.org/a%20b/" + quote(name) + "?size=large&token=1/2",
    "file address": lambda name: "file:///home/someone/" + quote(name),
    "URL encoding": lambda name: quote(name, safe=""),
    "case": lambda name: name.upper(),
    "accents": lambda name: unicodedata.normalize("NFD", name),
    "spaces": lambda name: f" {name} ",
    "suffix": lambda name: name.replace(".jpg", ".JPEG"),
    "no folder": lambda name: name.rpartition("/")[2],
    "another folder": lambda name: "elsewhere/" + name.rpartition("/")[2],
}


def _move(random_set):
    """Give the files accents and spaces, and put half of them into folders."""
    for i, image in enumerate(random_set.coco["images"]):
        folder = ("", "left/", "left/below/", "right/")[i % 4]
        name = f"{folder}Straße é {i:03d}.jpg"
        (random_set.image_root / folder).mkdir(parents=True, exist_ok=True)
        random_set.path(image).rename(random_set.image_root / name)
        image["file_name"] = name


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("share", [0.5, 1])
def test_names_in_another_spelling_are_corrected_and_nothing_is_dropped(spelling, share, random_set, cfg):
    _move(random_set)
    original = random_set.copy_of_coco()
    for image in random_set.coco["images"]:
        if random_set.rng.uniform() < share:
            image["file_name"] = SPELLINGS[spelling](image["file_name"])
    random_set.write()
    context = random_set.check(cfg)
    wrong = [
        image["file_name"] for image, right in zip(random_set.coco["images"], original["images"]) if image != right
    ]
    assert sorted(finding.place()[0] for finding in context.found) == sorted(wrong)
    for finding in context.found:
        right = next(image for image in original["images"] if image["id"] == finding.image["id"])
        assert finding.kind.name == "image-name-differs" and finding.detail.endswith(f", but {right['file_name']}")
    assert len(checks.repair_until_clean(context).left) == 0 and context.data.coco == original
    random_set.coco = context.data.coco
    random_set.write()
    for record in load_coco_json(str(random_set.json_file), str(random_set.image_root)):
        assert read_image(record["file_name"]).shape[:2] == (record["height"], record["width"])


@pytest.mark.parametrize("name", [
    lambda root, name: str(root / name),
    lambda root, name: f"../{root.name}/{name}",
    lambda root, name: f"../{root.name}/../{root.name}/./{name}",
])  # fmt: skip
def test_names_that_lead_out_of_the_folder_and_back_become_relative(name, random_set, cfg):
    _move(random_set)
    original = random_set.copy_of_coco()
    for image in random_set.coco["images"][::2]:
        image["file_name"] = name(random_set.image_root, image["file_name"])
    random_set.write()
    context = random_set.check(cfg)
    assert {finding.kind.name for finding in context.found} == {"image-path"}
    assert len(checks.repair_until_clean(context).left) == 0 and context.data.coco == original


def test_a_file_outside_the_folder_stays_with_a_warning(random_set, cfg):
    image = random_set.some("images")
    random_set.path(image).rename(random_set.folder / image["file_name"])
    image["file_name"] = f"../{image['file_name']}"
    random_set.write()
    context = random_set.check(cfg)
    assert [finding.kind.name for finding in context.found] == ["image-path"]
    repaired = checks.repair_until_clean(context)
    assert repaired.changes == {} and context.data.coco == random_set.coco


def _of_another_folder(s, image, other):
    """Frames of two films have the same names, and the second film is missing."""
    (s.image_root / "film1").mkdir()
    s.path(image).rename(s.image_root / "film1" / image["file_name"])
    s.path(other).unlink()
    other.update(width=image["width"], height=image["height"], file_name=f"film2/{image['file_name']}")
    image["file_name"] = f"film1/{image['file_name']}"
    return [other]


def _two_of_one_name(s, image, other):
    s.path(other).unlink()
    for folder in ("a", "b"):
        (s.image_root / folder).mkdir()
        s.draw(other, name=f"{folder}/{other['file_name']}")
    other["file_name"] = f"c/{other['file_name']}"
    return [other]


def _two_entries_of_one_file(s, image, other):
    s.path(other).unlink()
    other.update(width=image["width"], height=image["height"], file_name=f"y\\{image['file_name']}")
    image["file_name"] = f"x\\{image['file_name']}"
    return [image, other]


def _another_size(s, image, other):
    s.draw(image, size=(image["width"] + 9, image["height"]))
    image["file_name"] = f"elsewhere/{image['file_name']}"
    return [image]


def _another_format(s, image, other):
    s.path(image).rename(s.path(image).with_suffix(".png"))
    return [image]


@pytest.mark.parametrize("flaw, hint", [
    (_of_another_folder, ", which another entry means"),
    (_two_of_one_name, ", but [ab]/street_[0-9]+.jpg or [ab]/street_[0-9]+.jpg$"),
    (_two_entries_of_one_file, ", which another entry means"),
    (_another_size, ", but street_[0-9]+.jpg, of another size"),
    (_another_format, ", but street_[0-9]+.png$"),
])  # fmt: skip
def test_a_name_that_may_mean_another_file_is_left_with_a_hint(flaw, hint, random_set, cfg):
    images = random_set.coco["images"]
    wrong = flaw(random_set, images[2], images[5])
    random_set.coco["annotations"] = [
        a for a in random_set.coco["annotations"] if a["image_id"] not in (images[2]["id"], images[5]["id"])
    ] + [random_set.annotation({**image, "width": 90, "height": 90}, 900 + image["id"], 1) for image in images[2:6:3]]
    random_set.write()
    found = [finding for finding in random_set.check(cfg).found if finding.kind.name != "image-without-boxes"]
    assert [finding.image["id"] for finding in found] == [image["id"] for image in wrong]
    for finding in found:
        assert finding.kind.name == "image-missing" and re.search(hint, finding.detail)


def test_folders_tell_files_of_one_name_apart(random_set, cfg):
    """As frames of films do: each name is that of several files, and the last folder says which is meant."""
    images = random_set.coco["images"]
    for i, image in enumerate(images):
        folder = random_set.image_root / f"film{i % 3}"
        folder.mkdir(exist_ok=True)
        random_set.path(image).rename(folder / f"{i // 3:04d}.jpg")
        image["file_name"] = f"film{i % 3}/{i // 3:04d}.jpg"
    original = random_set.copy_of_coco()
    for image in images:
        image["file_name"] = "D:\\films\\" + image["file_name"].replace("/", "\\")
    random_set.write()
    context = random_set.check(cfg)
    assert len(checks.repair_until_clean(context).left) == 0 and context.data.coco == original


def test_a_circle_of_links_ends(random_set, cfg):
    (random_set.image_root / "again").symlink_to(random_set.image_root)
    image = random_set.some("images")
    right = image["file_name"]
    image["file_name"] = f"elsewhere/{right}"
    random_set.write()
    context = random_set.check(cfg)
    checks.repair_until_clean(context)
    assert right in {image["file_name"] for image in context.data.coco["images"]}
