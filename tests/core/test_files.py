"""Only regular files are opened for reading: the others may block or never end."""

import os
import pickle
import re
import socket

import pytest

from retina_plugin.core.errors import FileError, UserError
from retina_plugin.core.files import require_regular_file


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # the path of a socket has at most 108 bytes


KINDS = {
    "a named pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": os.mkdir,
    "a link to {folder}/gone, which does not exist": lambda path: path.symlink_to("gone"),
    "a link in a circle": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_named(kind, through_link, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights"
    KINDS[kind](path)
    if through_link:
        (tmp_path / "link").symlink_to("weights")
        path = tmp_path / "link"
    with pytest.raises(FileError, match=f"^{re.escape(f'{path} is {kind.format(folder=tmp_path)}')}") as error:
        require_regular_file(path)
    assert isinstance(error.value, OSError) and isinstance(error.value, UserError)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_regular_files_pass_and_missing_ones_raise_what_open_raises(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    require_regular_file(tmp_path / "file")
    require_regular_file(str(tmp_path / "link"))
    with pytest.raises(FileNotFoundError):
        require_regular_file(tmp_path / "other")
