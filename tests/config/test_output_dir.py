"""Folders that results cannot be written to."""

import os

import pytest
from detectron2.config import CfgNode

from retina_plugin.config.checks import output_dir_problems


def problems(folder):
    return list(output_dir_problems(CfgNode({"OUTPUT_DIR": str(folder)})))


def test_folders_that_are_there_or_can_be_made_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "new" / "run", "./output", "s3://bucket/run"):
        assert not problems(folder)
    assert not os.listdir(tmp_path)


def test_no_folder():
    assert problems("") == ["OUTPUT_DIR is empty: name a folder for checkpoints, metrics and results"]


@pytest.mark.parametrize("below", ["", "run", "run/1"])
def test_a_file_in_the_way(tmp_path, below):
    (tmp_path / "file").write_text("")
    (line,) = problems(tmp_path / "file" / below)
    assert line.endswith(f"{tmp_path / 'file'} is not a folder. Choose another one")


@pytest.mark.parametrize("folder", ["/proc/run", "/dev/null/run", "a" * 300, "a\0b"])
def test_what_no_file_system_makes(folder):
    (line,) = problems(folder)
    assert line.startswith("OUTPUT_DIR ") and "Choose another" in line


def test_a_link_to_nothing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (line,) = problems(tmp_path / "link")
    assert "cannot be used: No such file or directory" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others(tmp_path):
    tmp_path.chmod(0o555)
    (line,) = problems(tmp_path / "run")
    assert "cannot be used: Permission denied" in line
