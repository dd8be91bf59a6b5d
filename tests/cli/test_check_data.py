"""``python -m retina_plugin check-data``."""

import contextlib
import csv
import io
import json
import re

import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO

from retina_plugin.__main__ import main
from retina_plugin.model_zoo import get_config_file
from retina_plugin.tools.check_data.check import ERRORS, check_data_set_of

from ..data.checks.sets import RandomSet

SIZES = ["INPUT.MIN_SIZE_TRAIN", "(133,197)"]


@pytest.fixture
def random_set(tmp_path, seed):
    return RandomSet(tmp_path, seed)


@pytest.fixture
def check(random_set, capsys):
    """Writes the random set, runs the command on it, and returns its status and what it printed."""

    def check(*arguments, opts=SIZES):
        random_set.write()
        where = ["--json", str(random_set.json_file), "--images", str(random_set.image_root), "--workers", "0"]
        status = main(["check-data", *where, *map(str, arguments), *opts])
        return status, capsys.readouterr().out

    return check


def test_status_and_table_tell_errors_from_warnings_and_nothing(random_set, check):
    status, text = check()
    assert status == 0 and "Nothing was found." in text and f"{len(random_set.coco['images'])} images" in text
    for i, box in enumerate(([10, 20, 61, 60], [10, 20, 60, 61], [11, 20, 60, 60], [12, 20, 60, 60])):
        random_set.coco["annotations"][i].update(bbox=box, area=2500.0)
    status, text = check("--examples", 2)
    assert status == 0 and "1 warning." in text and "street_001.jpg, image 1, annotation 2" in text
    assert re.search("box-integer +1 in 4 places", text)  # advice counts once
    assert "annotation 3" not in text and "box-integer: Detectron2 resizes" in text
    random_set.path(random_set.coco["images"][4]).unlink()
    status, text = check()
    assert status == 1 and "1 error, 1 warning." in text and "street_005.jpg, image 5: no file" in text
    assert text.index("image-missing") < text.index("box-integer")


def test_what_cannot_be_read_has_status_2(random_set, tmp_path, capsys):
    random_set.write(json.dumps(random_set.coco)[:100])
    where = ["--json", str(random_set.json_file), "--images", str(random_set.image_root)]
    assert main(["check-data", *where]) == 2
    out = capsys.readouterr().out
    assert "json-truncated" in out and "it ends at byte 100" in out and "Nothing else could be checked." in out


@pytest.mark.parametrize("arguments, message", [
    ([], "name a registered data set, or a COCO file"),
    (["coco_2017_train", "--json", "a.json"], "name a registered data set, or a COCO file"),
    (["coco_2017_train", "--images", "a"], "--images is the folder of --json's images"),
    (["--json", "a.json"], "--json needs the folder of its images"),
    (["quick_start_digits_tran"], "data set 'quick_start_digits_tran' is not registered. Did you mean"),
    (["--json", "a.json", "--images", ".", "--report", "a.txt"], "must end in .csv or .json"),
    (["--json", "a.json", "--images", ".", "--fix", "nowhere/a.json"], "there is no folder nowhere"),
    (["--json", "a.json", "--images", ".", "--drop"], "--drop is for --fix FILE"),
    (["--json", "a.json", "--images", ".", "--examples", "0"], "--examples is 0"),
    (["--json", "a.json", "--images", ".", "--workers", "-1"], "--workers is -1"),
    (["--json", "a.json", "--images", ".", "--config-file", "no.yaml"], "cannot read config file no.yaml"),
    (["--json", "a.json", "--images", ".", "MODEL.NUM_CLASES", "3"], "unknown key MODEL.NUM_CLASES"),
    (["--json", "a.json", "--images", ".", "--opts", "MODEL.NUM_CLASES", "3"], "unknown key MODEL.NUM_CLASES"),
    (["--json", "a.json", "--images", ".", "--import", "no_such_module"], "there is no module 'no_such_module'"),
    (["--json", "a.json", "--images", ".", "--opts", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16]]"], "has 2 lists"),
    (["--json", "a.json", "--images", ".", "--opts", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "not a RetinaNet"),
])  # fmt: skip
def test_wrong_arguments_have_status_2_and_a_line(arguments, message, capsys):
    assert main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_the_users_configuration_is_what_is_judged(random_set, check, tmp_path):
    assert check(opts=[*SIZES, "MODEL.RETINANET.NUM_CLASSES", "3"])[0] == 0
    status, text = check(opts=[*SIZES, "MODEL.RETINANET.NUM_CLASSES", "4"])
    assert status == 1 and "MODEL.RETINANET.NUM_CLASSES is 4, and there are 3 categories" in text
    sizes = "[[4],[6],[8],[10],[12]]"
    status, text = check(opts=[*SIZES, "MODEL.ANCHOR_GENERATOR.SIZES", sizes])
    assert status == 0 and "anchors-too-small" in text
    (tmp_path / "of_a_training.yaml").write_text(
        f"{{_BASE_: {get_config_file('Base-RetinaNet.yaml')}, MODEL: {{RETINANET: {{NUM_CLASSES: 5}}}}}}"
    )
    status, text = check("--config-file", tmp_path / "of_a_training.yaml")
    assert status == 1 and "MODEL.RETINANET.NUM_CLASSES is 5" in text


def test_overrides_after_opts_are_read_as_before(check):
    assert check(opts=["--opts", *SIZES])[0] == 0
    assert check(opts=["--opts", *SIZES, "MODEL.RETINANET.NUM_CLASSES", "4"])[0] == 1


def test_an_imported_module_registers_the_data_set(random_set, tmp_path, capsys):
    random_set.write()
    name = f"imported_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        f"register_coco_instances({name!r}, {{}}, {str(random_set.json_file)!r}, {str(random_set.image_root)!r})\n"
    )
    command = ["check-data", name, "--workers", "0", *SIZES]
    assert main(command) == 2 and f"data set '{name}' is not registered" in capsys.readouterr().err
    assert main([*command, "--import", str(tmp_path / f"{name}.py")]) == 0
    DatasetCatalog.remove(name)
    assert f"{name}: {len(random_set.coco['images'])} images" in capsys.readouterr().out


def test_python_gets_findings_and_status(random_set, capsys):
    random_set.path(random_set.coco["images"][4]).unlink()
    random_set.write()
    found, status = check_data_set_of(
        json_file=random_set.json_file, image_root=random_set.image_root, opts=SIZES, workers=0
    )
    assert status == ERRORS and [finding.kind.name for finding in found] == ["image-missing"]


def test_the_report_has_every_finding(random_set, check, tmp_path):
    image = random_set.coco["images"][2]
    for annotation in random_set.coco["annotations"]:
        annotation["bbox"] = [30, 30, 55, 52 + annotation["id"] % 3]
        annotation["area"] = 2000.0
    random_set.path(image).unlink()
    for name in ("all.csv", "all.json"):
        assert check("--report", tmp_path / name)[0] == 1
    with open(tmp_path / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    items = json.loads((tmp_path / "all.json").read_text())
    assert [{k: "" if v is None else str(v) for k, v in item.items()} for item in items] == rows
    assert sum(row["kind"] == "box-integer" for row in rows) == len(random_set.coco["annotations"])
    missing = next(item for item in items if item["kind"] == "image-missing")
    assert missing["severity"] == "error" and missing["file_name"] == image["file_name"] and missing["image_id"] == 3


def test_the_corrected_copy_is_clean_and_loads_and_the_original_stays(random_set, check, tmp_path, capsys):
    first, second, third, fourth = (random_set.coco["annotations"][i] for i in (0, 5, 10, 15))
    first["bbox"][2] = 0.0
    second["id"] = third["id"]
    del third["iscrowd"], third["area"]
    fourth["bbox"] = [-20, 10, 90, 60]
    random_set.path(random_set.coco["images"][-1]).write_text("<html>")
    random_set.coco["licenses"] = [{"id": 1, "name": "any"}]
    copy = tmp_path / "copy.json"
    status, text = check("--fix", copy, "--drop")
    original = random_set.json_file.read_text()
    assert original == json.dumps(random_set.coco) and status == 1 and str(copy) in text and "Left in it" not in text
    for line in ("box-zero", "iscrowd-missing", "area-missing", "box-partly-outside", "annotation-id-duplicate"):
        assert line in text.partition("done")[2]

    corrected = json.loads(copy.read_text())
    total, images = len(random_set.coco["annotations"]), len(random_set.coco["images"])
    number = total - 1 - 4  # the empty box, and those of the image that is none
    assert f"{images - 1} of {images} images, {number} of {total} annotations, 3 of 3 categories left." in text
    assert len(corrected["annotations"]) == number and corrected["licenses"] == random_set.coco["licenses"]
    assert main(["check-data", "--json", str(copy), "--images", str(random_set.image_root), *SIZES]) == 0
    assert "Nothing was found." in capsys.readouterr().out
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(COCO(str(copy)).anns) == number
    records = load_coco_json(str(copy), str(random_set.image_root), f"corrected_{tmp_path.name}")
    assert sum(len(record["annotations"]) for record in records) == number


def test_no_copy_is_written_that_lacks_much_unless_it_is_asked_for(random_set, check, tmp_path):
    copy, total = tmp_path / "copy.json", len(random_set.coco["annotations"])
    share = int(random_set.rng.integers(1, total // 20 + 1))  # 5 % may go
    for annotation in random_set.coco["annotations"][:share]:
        annotation["bbox"] = [10.0, 10.0, 0.0, 30.0]
    status, text = check("--fix", copy)
    assert status == 1 and f"{total - share} of {total} annotations" in text
    assert len(json.loads(copy.read_text())["annotations"]) == total - share
    copy.unlink()
    for annotation in random_set.coco["annotations"][: total // 20 + 1]:
        annotation["bbox"] = [10.0, 10.0, 0.0, 30.0]
    for category in ("bus", "boat"):  # of five, two have one id: nothing goes
        random_set.coco["categories"].append({"id": 9, "name": category})
    status, text = check("--fix", copy)
    gone, left = total // 20 + 1, total - total // 20 - 1
    assert status == 1 and not copy.exists()
    assert f"{left} of {total} annotations, 5 of 5 categories left." in text
    assert f"written: --fix would drop {gone} of {total} annotations (box-zero: {gone}), more than 5%" in text
    status, text = check("--fix", copy, "--drop")
    assert status == 1 and f"{left} of {total} annotations, 5 of 5 categories left." in text
    assert len(json.loads(copy.read_text())["annotations"]) == left


def test_repeated_boxes_alone_are_status_1_if_the_copy_is_not_written(random_set, check, tmp_path):
    """A repeated box is a warning; the copy that the user asked for is missing all the same."""
    random_set.coco["annotations"] += [{**a, "id": 1000 + a["id"]} for a in random_set.coco["annotations"][:20]]
    assert check()[0] == 0
    status, text = check("--fix", tmp_path / "copy.json")
    assert status == 1 and "box-duplicate: 20" in text and not (tmp_path / "copy.json").exists()


def test_the_original_is_never_written(random_set, check, capsys):
    random_set.coco["annotations"][0]["bbox"][2] = 0.0
    assert check("--fix", random_set.json_file)[0] == 2
    assert random_set.json_file.read_text() == json.dumps(random_set.coco)


def test_with_the_wrong_folder_no_image_is_removed(random_set, tmp_path, capsys):
    random_set.write()
    (tmp_path / "empty").mkdir()
    where = ["--json", str(random_set.json_file), "--images", str(tmp_path / "empty")]
    assert main(["check-data", *where, "--workers", "0", "--fix", str(tmp_path / "copy.json"), *SIZES]) == 1
    assert json.loads((tmp_path / "copy.json").read_text()) == random_set.coco
    assert "Nothing had to be changed." in capsys.readouterr().out


def test_images_can_be_left_alone_or_not_decoded(random_set, check, tmp_path, capsys):
    path = random_set.path(random_set.coco["images"][1])
    path.write_bytes(path.read_bytes()[:-50])
    assert check()[0] == 1
    assert check("--headers-only")[0] == 0
    path.unlink()
    assert check("--headers-only")[0] == 1
    assert check("--no-images")[0] == 0
    assert main(["check-data", "--json", str(random_set.json_file), "--no-images", *SIZES]) == 0


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_digits_have_no_errors(split, capsys):
    config = get_config_file("digits.yaml")
    assert main(["check-data", f"quick_start_digits_{split}", "--config-file", config]) == 0
    assert "error" not in capsys.readouterr().out
