"""What the commands write: no file of the user is lost, above all not the data set and the weights themselves."""

import json
import os

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from retina_plugin.__main__ import main
from retina_plugin.tools.visualize.grid import draw_grid

from ..data.checks.sets import RandomSet

SIZES = ["INPUT.MIN_SIZE_TRAIN", "(133,197)"]


@pytest.fixture
def random_set(tmp_path, seed):
    made = RandomSet(tmp_path, seed)
    made.coco["annotations"][0]["bbox"][2] = 0.0  # for --fix
    made.write()
    return made


@pytest.mark.parametrize("option", ["--fix", "--report"])
@pytest.mark.parametrize("registered", [False, True])
def test_check_data_never_writes_over_the_data_set(random_set, tmp_path, capsys, option, registered):
    original = random_set.json_file.read_bytes()
    where = ["--json", str(random_set.json_file), "--images", str(random_set.image_root)]
    name = f"outputs_{tmp_path.name}"
    register_coco_instances(name, {}, str(random_set.json_file), str(random_set.image_root))
    (tmp_path / "link.json").symlink_to("set.json")
    os.link(random_set.json_file, tmp_path / "hard.json")
    try:
        for spelling in ("set.json", "images/../set.json", "link.json", "hard.json"):
            words = [option, str(tmp_path / spelling), "--overwrite", "--workers", "0", *SIZES]
            assert main(["check-data", *([name] if registered else where), *words]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {tmp_path}/{spelling} is the input ") and error.count("\n") == 1
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert random_set.json_file.read_bytes() == original == (tmp_path / "hard.json").read_bytes()


@pytest.mark.parametrize("option, name", [("--fix", "copy.json"), ("--report", "out.json"), ("--report", "out.csv")])
def test_check_data_replaces_other_files_only_with_overwrite(random_set, tmp_path, capsys, option, name):
    where = ["--json", str(random_set.json_file), "--images", str(random_set.image_root), "--workers", "0"]
    (tmp_path / name).write_text("mine")
    words = ["check-data", *where, option, str(tmp_path / name), *SIZES]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/{name} exists: name another file, or replace it with --overwrite\n"
    )
    assert (tmp_path / name).read_text() == "mine"
    assert main([*words, "--overwrite"]) == 1
    assert (tmp_path / name).read_text() != "mine"


def test_fix_and_report_need_a_file_each(random_set, tmp_path, capsys):
    where = ["--json", str(random_set.json_file), "--images", str(random_set.image_root)]
    both = ["--fix", str(tmp_path / "a.json"), "--report", f"{tmp_path}/images/../a.json"]
    assert main(["check-data", *where, *both]) == 2
    assert "--fix and --report name the same file" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_convert_never_writes_over_its_source(tmp_path, capsys):
    torch.save({"model": {"head.cls_score.bias": torch.zeros(9)}}, tmp_path / "net.pth")
    (tmp_path / "net.yaml").write_text("MODEL: {META_ARCHITECTURE: FocalRetinaNet}\n")
    (tmp_path / "link.pth").symlink_to("net.pth")
    before = {name: (tmp_path / name).read_bytes() for name in ("net.pth", "net.yaml")}
    for words in (["--to", "detectron2"], ["--from", "torchvision"]):
        for name in ("net", "link", "net.pth"):
            assert main(["convert", str(tmp_path / "net.pth"), str(tmp_path / name), *words, "--overwrite"]) == 2
            assert " itself, which stays as it is: name another file" in capsys.readouterr().err
    # The configuration beside the weights is read as well.
    (tmp_path / "model_final.pth").write_bytes(before["net.pth"])
    (tmp_path / "config.yaml").write_bytes(before["net.yaml"])
    words = [str(tmp_path / "model_final.pth"), str(tmp_path / "config"), "--to", "detectron2", "--overwrite"]
    assert main(["convert", *words]) == 2
    assert f"error: {tmp_path}/config.yaml is the input {tmp_path}/config.yaml itself" in capsys.readouterr().err
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert (tmp_path / "config.yaml").read_bytes() == before["net.yaml"]


def test_files_that_commands_name_themselves_do_not_reach_through_links(random_set, tmp_path):
    (tmp_path / "photo.png").write_text("mine")
    (tmp_path / "sheet.png").symlink_to("photo.png")
    (tmp_path / "results.json").write_text("[]")
    name = f"outputs_{tmp_path.name}"
    register_coco_instances(name, {}, str(random_set.json_file), str(random_set.image_root))
    try:
        draw_grid(name, tmp_path / "results.json", tmp_path / "sheet.png")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert (tmp_path / "photo.png").read_text() == "mine"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 288
    assert json.loads(random_set.json_file.read_text()) == random_set.coco
