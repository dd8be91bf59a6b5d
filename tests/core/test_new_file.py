"""Files whose names the user chose: what exists stays, and what is read is never replaced."""

import os
import re

import pytest

from retina_plugin.core.errors import FileError
from retina_plugin.core.files import require_new_file


def spellings(folder):
    """Ways to name folder/set.json."""
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("set.json")
    (folder / "around").symlink_to(folder)
    os.link(folder / "set.json", folder / "hard.json")
    names = ["set.json", "./set.json", "sub/../set.json", "link", "hard.json", "around/link"]
    return [*names, str(folder / "set.json")]


def test_an_input_is_never_replaced_by_any_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.json").write_text("data")
    for name in spellings(tmp_path):
        for overwrite in (False, True):
            with pytest.raises(FileError, match=f"^{re.escape(name)} is the input set.json itself"):
                require_new_file(name, overwrite=overwrite, inputs=["other.json", None, "set.json"])


def test_other_files_need_overwrite_and_must_be_files(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("file", "dangling"):
        with pytest.raises(FileError, match=f"/{name} exists: name another file, or replace it with --overwrite"):
            require_new_file(tmp_path / name)
        require_new_file(tmp_path / name, overwrite=True)
    for name, kind in (("folder", "folder"), ("pipe", "named pipe"), ("device", "device")):
        with pytest.raises(FileError, match=f"/{name} is a {kind}, not a file"):
            require_new_file(tmp_path / name, overwrite=True)
    with pytest.raises(FileError, match="there is no folder .*/missing"):
        require_new_file(tmp_path / "missing" / "file")
    require_new_file(tmp_path / "new")
