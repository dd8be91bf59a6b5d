"""Objects that trainings save beside their weights are left out by name, and nothing of them is run."""

import argparse
import collections
import dataclasses
import datetime
import enum
import io
import logging
import pathlib
import pickle
import sys
import types
import uuid

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from retina_plugin.__main__ import main
from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer, read_checkpoint
from retina_plugin.checkpoint.foreign import Foreign, foreign_kinds

from .pickle_programs import PROTO, call, items, name, text


class HistoryBuffer:
    """What mmengine's does when it is pickled: its state has its own methods in it."""

    def __init__(self):
        self._log_history = np.arange(3.0)

    @classmethod
    def mean(cls):
        raise AssertionError

    def __getstate__(self):
        return {**vars(self), "statistics_methods": {"mean": type(self).current, "all": type(self).mean}}

    def current(self):
        raise AssertionError


class Stage(enum.Enum):
    TRAIN = "train"


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


class Config(dict):
    pass


class Steps(list):
    pass


class Point(collections.namedtuple("Point", "x y")):
    pass


class Loud:
    """Says so wherever code of it runs."""

    def __reduce__(self):
        return Loud, ("an argument",), {"state": 1}

    def __init__(self, *args):
        if args:
            raise AssertionError("the constructor ran")

    def __setstate__(self, state):
        raise AssertionError("the state was set")


# What trainings save -> the names that are left out
BESIDE = {
    "mmengine": lambda: collections.OrderedDict(loss=HistoryBuffer(), lr=HistoryBuffer()),
    "argparse": lambda: argparse.Namespace(lr=0.01, path=pathlib.PurePosixPath("/data"), sub=argparse.Namespace()),
    "omegaconf": lambda: OmegaConf.create({"lr": 0.1, "steps": [1, 2], "name": "x"}),
    "pathlib": lambda: [pathlib.Path("/data"), pathlib.PurePath("x")],
    "dates": lambda: {"at": datetime.datetime(2026, 1, 2), "for": datetime.timedelta(3), "zone": datetime.timezone.utc},
    "numpy's random state": lambda: [np.random.RandomState(3), np.random.default_rng(4)],
    "containers of their own": lambda: [Config(lr=0.1), Steps([1, 2]), Point(1, 2), collections.deque([1], 3)],
    "dataclass and enum": lambda: {"settings": Settings(), "stage": Stage.TRAIN, Stage.TRAIN: 1},
    "module and optimizer": lambda: [nn.Sequential(nn.Linear(2, 2)), torch.optim.SGD(nn.Linear(1, 1).parameters(), 1)],
    "classes": lambda: [Settings, dict, int, np.float32, collections.OrderedDict],
    "values": lambda: [uuid.UUID(int=3), types.SimpleNamespace(a=1), range(3), slice(1, 2), complex(1, 2)],
    "code": Loud,
}


def files(content):
    for protocol in range(2, 6):
        for is_zip in (True, False):
            file = io.BytesIO()
            torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
            yield f"torch, protocol {protocol}, {'zip' if is_zip else 'before 1.6'}", file.getvalue()


@pytest.mark.parametrize("kind", BESIDE)
def test_weights_are_read_and_objects_beside_them_left_out(kind, tmp_path, caplog, report):
    state = {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3)}
    for label, content in files({"state_dict": state, "epoch": 12, "beside": BESIDE[kind]()}):
        (tmp_path / "m.pth").write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            checkpoint = read_checkpoint(tmp_path / "m.pth")
        assert checkpoint["epoch"] == 12 and checkpoint["model"].keys() == state.keys(), label
        assert all(torch.equal(checkpoint["model"][key], state[key]) for key in state), label
        left_out = foreign_kinds(checkpoint)
        assert left_out and "objects beside the weights are left out" in caplog.text and left_out[0] in caplog.text
    report("Objects beside the weights: what is left out", kind, ", ".join(left_out))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_read_as_well(protocol, tmp_path):
    beside = [argparse.Namespace(lr=1), Settings(), Config(a=1), Steps([1]), HistoryBuffer(), np.random.RandomState(1)]
    content = {"model": {"w": np.arange(6.0)}, "__author__": "x", "beside": beside}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, protocol))
    checkpoint = read_checkpoint(tmp_path / "m.pkl")
    np.testing.assert_array_equal(checkpoint["model"]["w"], np.arange(6.0))
    assert all(isinstance(item, Foreign) for item in checkpoint["beside"])
    assert [item.kind for item in checkpoint["beside"][:4]] == [
        "argparse.Namespace",
        *(f"{__name__}.{kind}" for kind in ("Settings", "Config", "Steps")),
    ]


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "this_would_run.py").write_text("raise AssertionError('imported')")
    program = items(("w", call(name("this_would_run", "Config"), text("x"))), ("v", name("this_would_run", "Module")))
    (tmp_path / "m.pkl").write_bytes(PROTO + items(("model", items(("w", b"N"))), ("beside", program)) + b".")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="its keys are w"):
        read_checkpoint(tmp_path / "m.pkl")
    assert "this_would_run" not in sys.modules


@pytest.mark.parametrize(
    "module, attribute",
    [
        *[("subprocess", "Popen"), ("multiprocessing.context", "Process"), ("socket", "SocketType"), ("io", "FileIO")],
        *[("types", "FunctionType"), ("types", "CodeType"), ("ctypes", "CDLL"), ("zipimport", "ZipImporter")],
        *[("threading", "Thread"), ("tempfile", "TemporaryDirectory"), ("http.client", "HTTPConnection")],
        *[("builtins", "eval"), ("builtins", "type"), ("operator", "methodcaller"), ("numpy", "fromfile")],
        *[("torch", "load"), ("torch.hub", "load"), ("yaml", "unsafe_load"), ("pandas", "read_pickle")],
        *[("nt", "system"), ("pip", "main"), ("mmengine.utils", "import_modules"), ("Module.Sub", "function")],
        *[("pathlib", "os.system"), ("datetime", "sys.exit"), ("typing", "x\x1b[31m"), ("builtins", "print")],
        *[("os.path", "Xy"), ("a b", "Config"), ("", "Config"), ("x\x1b[31m", "Config"), ("mmengine", "Config\n.x")],
    ],
)
def test_functions_and_what_acts_are_refused_by_name(module, attribute, tmp_path):
    beside = b"X%sX%s\x93" % tuple(len(part).to_bytes(4, "little") + part.encode() for part in (module, attribute))
    content = b"\x80\x04" + items(("model", items(("w", b"N"))), ("beside", call(beside, text("x")))) + b"."
    (tmp_path / "m.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match="unsafe: it names ") as error:
        read_checkpoint(tmp_path / "m.pkl")
    message = str(error.value)
    assert message.isprintable() and (not (module + attribute).isidentifier() or f"{module}.{attribute}" in message)


def test_methods_are_only_those_of_classes_that_are_left_out(tmp_path):
    getattr_ = name("__builtin__", "getattr")
    for owner in (text("text"), name("__builtin__", "list"), name("collections", "OrderedDict"), b"]"):
        program = call(getattr_, owner, text("__class__"))
        (tmp_path / "m.pkl").write_bytes(PROTO + items(("model", program)) + b".")
        with pytest.raises(CheckpointError, match="unsafe: it names builtins.getattr"):
            read_checkpoint(tmp_path / "m.pkl")


def test_an_object_in_the_place_of_weights_is_refused(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="its 'model' is a torch.nn.modules.linear.Linear, not a dict"):
        read_checkpoint(tmp_path / "m.pth")
    torch.save({"model": {"a": torch.ones(2), "b": Settings()}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=f"1 of its 2 values are no tensors: 'b' is a {__name__}.Settings"):
        read_checkpoint(tmp_path / "m.pth")


class Run:
    """A checkpointable with an object in its state."""

    settings = None

    def state_dict(self):
        return {"history": [self.settings]}

    def load_state_dict(self, state):
        self.settings = state["history"][0]


def test_a_run_is_not_resumed_from_placeholders(tmp_path):
    run, model = Run(), nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "run": {"history": [Settings(0.5)]}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"objects that are not read \(.*Settings\).*MODEL.WEIGHTS_ALLOW_PICKLE"):
        RetinaCheckpointer(model, run=run).load(str(tmp_path / "m.pth"))
    assert run.settings is None
    RetinaCheckpointer(model, run=run).load(str(tmp_path / "m.pth"), checkpointables=[])
    RetinaCheckpointer(model, run=run, allow_pickle=True).load(str(tmp_path / "m.pth"))
    assert run.settings == Settings(0.5)


def test_with_pickles_allowed_what_is_not_installed_is_left_out(tmp_path, caplog):
    gone = types.ModuleType("gone")
    gone.Buffer = type("Buffer", (), {"__module__": "gone"})
    sys.modules["gone"] = gone
    try:
        torch.save({"model": {"w": torch.ones(2)}, "hub": gone.Buffer()}, tmp_path / "m.pth")
    finally:
        del sys.modules["gone"]
    checkpoint = read_checkpoint(tmp_path / "m.pth", allow_pickle=True)
    assert checkpoint["model"]["w"].sum() == 2 and repr(checkpoint["hub"]) == "<gone.Buffer, not read>"
    assert "these objects are left out (No module named 'gone')" in caplog.text


def test_the_error_of_convert_names_its_own_option(tmp_path, capsys):
    (tmp_path / "m.pth").write_bytes(b"cposix\nsystem\n(S'touch it_ran'\ntR.")
    assert main(["convert", str(tmp_path / "m.pth"), str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert "it names posix.system" in errors and errors.rstrip().endswith("--allow-pickle reads it all the same")
    assert "MODEL." not in errors
