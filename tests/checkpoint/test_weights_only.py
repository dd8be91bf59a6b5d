"""A process killed while it writes leaves a checkpoint that is whole, and what is written holds no pickled code."""

import enum
import logging
import os
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.checkpoint.weights_only import to_weights_only
from retina_plugin.core import files as writing

MOMENTS = (
    *("write 0.0", "write 0.3", "write 0.6", "write 0.95"),
    *("before replace 1", "after replace 1", "before replace 2", "after replace 2"),
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, python):
    """Folders that processes left which were killed at the moments."""
    folder = tmp_path_factory.mktemp("killed")
    result = python.run(Path(__file__).with_name("killed.py"), folder, *MOMENTS, PYTHONPATH=python.root)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * len(MOMENTS) and all(line.endswith(": 9") for line in lines), "each died of SIGKILL"
    return folder


@pytest.mark.parametrize("name", ["same", "other"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_process_leaves_a_checkpoint_that_is_whole(killed, moment, name):
    folder = killed / f"{moment}, {name}"
    left = sorted(path.name for path in folder.iterdir() if path.name.endswith(".unfinished"))
    if moment.startswith("write"):
        assert left == [f"{'model' if name == 'same' else 'model_final'}.pth.unfinished"]
        if moment == "write 0.6":
            assert os.path.getsize(folder / left[0]) > 100_000, "half of the file was on the disk"

    model = nn.Linear(300, 200)
    checkpointer = RetinaCheckpointer(model, str(folder))
    assert not [name for name in checkpointer.get_all_checkpoint_files() if "unfinished" in name]
    iteration = checkpointer.resume_or_load("", resume=True)["iteration"]
    assert (model.weight == iteration).all()
    replaced = moment in ("after replace 1", "before replace 2", "after replace 2")
    new_is_named = moment == "after replace 2" or (replaced and name == "same")
    assert iteration == (2 if new_is_named else 1)

    checkpointer.save("model_next", iteration=3)
    assert not [path for path in folder.iterdir() if path.name.endswith(".unfinished")], "the next run tidies up"
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 3


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path):
    checkpointer = RetinaCheckpointer(nn.Linear(3, 2), str(tmp_path))
    checkpointer.save("model", iteration=1)
    old = (tmp_path / "model.pth").read_bytes()

    def fail(file):
        file.write(b"something")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        writing.atomic_write(str(tmp_path / "model.pth"), fail)
    assert (tmp_path / "model.pth").read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_files_of_others_stay(tmp_path):
    for name in ("notes.unfinished", "model.pth", "last_checkpoint", "model.pth.unfinished.txt"):
        (tmp_path / name).write_text("mine")
    for name in ("model_final.pth.unfinished", "last_checkpoint.unfinished"):
        (tmp_path / name).write_text("half")
    writing.remove_unfinished(tmp_path, ".pth", "last_checkpoint")
    assert sorted(os.listdir(tmp_path)) == [
        "last_checkpoint",
        "model.pth",
        "model.pth.unfinished.txt",
        "notes.unfinished",
    ]


def test_a_worker_that_is_not_the_main_one_writes_nothing(tmp_path):
    RetinaCheckpointer(nn.Linear(3, 2), str(tmp_path), save_to_disk=False).save("model")
    assert os.listdir(tmp_path) == []


def test_a_name_is_not_a_path(tmp_path):
    with pytest.raises(ValueError, match="without a folder"):
        RetinaCheckpointer(nn.Linear(3, 2), str(tmp_path)).save("../model")
    assert os.listdir(tmp_path) == []


class Color(enum.IntEnum):
    RED = 3


class Text(str):
    pass


Point = namedtuple("Point", "x y")


def test_what_torch_would_refuse_is_converted(tmp_path):
    state = {
        "numpy": {"ap": np.float64(37.5), "at": np.int64(9), "is_best": np.bool_(True), "wide": np.longdouble(1.5)},
        "arrays": [np.arange(3.0), np.array([[1, 2]], dtype=">i4")],
        "containers": (defaultdict(list, a=[1]), Point(1, np.float32(0.5)), frozenset({1, 2}), OrderedDict(b=2)),
        "kinds": [Color.RED, Text("text"), np.str_("more"), None, 2**70, 1j, b"bytes", torch.float16, torch.Size([2])],
        np.int64(5): {"nested": [{"deep": (np.float16(2.0),)}]},
    }
    torch.save(state, tmp_path / "raw.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "raw.pth", weights_only=True)
    torch.save(to_weights_only(state), tmp_path / "plain.pth")
    plain = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert plain["numpy"] == {"ap": 37.5, "at": 9, "is_best": True, "wide": 1.5}
    assert torch.equal(plain["arrays"][0], torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    assert torch.equal(plain["arrays"][1], torch.tensor([[1, 2]], dtype=torch.int32))
    assert plain["containers"] == ({"a": [1]}, (1, 0.5), {1, 2}, {"b": 2})
    assert plain["kinds"] == [3, "text", "more", None, 2**70, 1j, b"bytes", torch.float16, torch.Size([2])]
    assert plain[5] == {"nested": [{"deep": (2.0,)}]}


def test_a_state_dict_keeps_the_versions_of_its_modules():
    state = nn.Sequential(nn.BatchNorm2d(3)).state_dict()
    plain = to_weights_only(state)
    assert plain._metadata == state._metadata and list(plain) == list(state)
    assert all(plain[name] is value for name, value in state.items()), "tensors are not copied"


def test_what_cannot_be_converted_is_saved_with_a_warning_that_names_it(caplog):
    state = {"hooks": {"Mine": {"when": [Path("/x")]}}}
    with caplog.at_level(logging.WARNING):
        assert to_weights_only(state, "trainer") == state
    assert "trainer.hooks.Mine.when[0] is a pathlib." in caplog.text and "WEIGHTS_ALLOW_PICKLE" in caplog.text
