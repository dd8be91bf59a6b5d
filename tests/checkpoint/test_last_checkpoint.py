"""A ``last_checkpoint`` that cannot be used is an error: a run never starts anew in place of being resumed."""

import contextlib
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer


def link_to(target):
    return lambda path: path.symlink_to(target)


def bytes_of(content):
    return lambda path: path.write_bytes(content)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # the path of a socket has at most 108 bytes


# name -> (what makes last_checkpoint, what is said)
UNUSABLE = {
    "a folder": (os.mkdir, "last_checkpoint is a folder, not a file"),
    "a named pipe": (os.mkfifo, "last_checkpoint is a named pipe, not a file"),
    "a socket": (make_socket, "last_checkpoint is a socket, not a file"),
    "an endless device": (link_to("/dev/zero"), "last_checkpoint is a device, not a file"),
    "a link to nothing": (link_to("gone"), "last_checkpoint is a link to .*gone, which does not exist"),
    "a link to itself": (link_to("last_checkpoint"), "last_checkpoint is a link in a circle"),
    "a disk that fails": (link_to("/proc/self/mem"), r"Input/output error"),
    "empty": (bytes_of(b""), "does not name a checkpoint, but has b''"),
    "blank": (bytes_of(b" \n\n"), "does not name a checkpoint"),
    "not text": (bytes_of(b"\xff\xfe\x00model.pth"), "does not name a checkpoint"),
    "zeros": (bytes_of(bytes(30)), "does not name a checkpoint"),
    "terminal codes": (bytes_of(b"\x1b[2Jmodel.pth"), "does not name a checkpoint"),
    "two lines": (bytes_of(b"model.pth\nmodel.pth\n"), "does not name a checkpoint"),
    "long": (bytes_of(b"m" * 100_000), "does not name a checkpoint, but has b'mmm"),
    "a checkpoint itself": (lambda path: torch.save({"a": torch.ones(9)}, path), "does not name a checkpoint"),
    "this folder": (bytes_of(b"."), "does not name a checkpoint"),
    "another folder": (bytes_of(b"../other/model.pth"), "names ../other/model.pth, which is not in its folder"),
    "an absolute name": (bytes_of(b"/tmp/model.pth"), "names /tmp/model.pth, which is not in its folder"),
    "a file that is gone": (bytes_of(b"model_gone.pth\n"), "model_gone.pth: there is no such file"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_last_checkpoint_that_cannot_be_used_is_an_error_in_a_line(case, tmp_path, report):
    make, message = UNUSABLE[case]
    make(tmp_path / "last_checkpoint")
    before = sorted(tmp_path.iterdir())
    checkpointer = RetinaCheckpointer(nn.Linear(1, 1), str(tmp_path))
    assert checkpointer.has_checkpoint()
    with pytest.raises(CheckpointError, match=message) as error:
        checkpointer.resume_or_load("", resume=True)
    assert str(error.value).isprintable() and sorted(tmp_path.iterdir()) == before
    report("last_checkpoint: what is said", case, str(error.value).replace(f"{tmp_path}/", ""))


def test_a_folder_without_one_has_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        checkpointer = RetinaCheckpointer(nn.Linear(1, 1), str(folder))
        assert not checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file() == ""
        assert checkpointer.resume_or_load("", resume=True) == {}


@contextlib.contextmanager
def without_rights():
    """As a user who may not do everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", ["last_checkpoint", ""])
def test_a_last_checkpoint_that_may_not_be_read_is_an_error(closed):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755)
        (folder / "last_checkpoint").write_text("model.pth")
        (folder / closed).chmod(0)
        checkpointer = RetinaCheckpointer(nn.Linear(1, 1), str(folder))
        with without_rights(), pytest.raises(CheckpointError, match="last_checkpoint cannot be read .*Permission"):
            checkpointer.resume_or_load("", resume=True)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "an endless device", "a link to itself"])
def test_weights_that_are_no_file_are_an_error_in_a_line(kind, tmp_path):
    make, message = UNUSABLE[kind]
    make(tmp_path / "last_checkpoint")
    message = "this is a folder" if kind == "a folder" else message
    with pytest.raises(CheckpointError, match=f"^weights {re.escape(str(tmp_path))}/last_checkpoint.*") as error:
        RetinaCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "last_checkpoint"))
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.skipif(not os.path.exists("/proc/kmsg"), reason="a file that waits for messages of the kernel")
def test_a_file_without_a_size_is_not_read(tmp_path):
    (tmp_path / "model.pth").symlink_to("/proc/kmsg")
    with pytest.raises(CheckpointError, match="an empty file|cannot be read"):
        RetinaCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "model.pth"))
