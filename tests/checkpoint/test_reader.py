"""Every format is known by its content, and a file that is none of them gets a message of its own."""

import gzip
import io
import logging
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from retina_plugin.checkpoint import CheckpointError, read_checkpoint

from .conftest import python2_pickle


def weights():
    return {f"layer{i}.weight": torch.randn(3, 4) for i in range(5)}


def torch_file(value, **how):
    data = io.BytesIO()
    torch.save(value, data, **how)
    return data.getvalue()


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


ZIP, LEGACY = {}, {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.pyth", "model"])
@pytest.mark.parametrize("how", [ZIP, LEGACY], ids=["zip", "before 1.6"])
def test_what_torch_saved_is_read_under_any_name(how, name, tmp_path):
    state = weights()
    (tmp_path / name).write_bytes(torch_file({"model": state, "iteration": 7, "class_names": ["a", "b"]}, **how))
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint["iteration"] == 7 and checkpoint["class_names"] == ["a", "b"]
    assert checkpoint["model"].keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(checkpoint["model"][key], value)


def test_what_mmdetection_and_lightning_call_state_dict_is_the_model(tmp_path):
    state = {"layer.weight": torch.rand(2, 3)}
    torch.save({"meta": {"CLASSES": ("a", "b")}, "state_dict": state, "epoch": 3}, tmp_path / "theirs.pth")
    checkpoint = read_checkpoint(tmp_path / "theirs.pth")
    assert checkpoint.keys() == {"model", "meta", "epoch"} and checkpoint["meta"] == {"CLASSES": ("a", "b")}
    assert torch.equal(checkpoint["model"]["layer.weight"], state["layer.weight"])


@pytest.mark.parametrize("how", [ZIP, LEGACY], ids=["zip", "before 1.6"])
def test_a_state_dict_alone_is_a_model(how, tmp_path):
    model = nn.BatchNorm2d(3)
    (tmp_path / "bn.pth").write_bytes(torch_file(model.state_dict(), **how))
    checkpoint = read_checkpoint(tmp_path / "bn.pth")
    assert list(checkpoint) == ["model"] and list(checkpoint["model"]) == list(model.state_dict())
    assert checkpoint["model"]._metadata[""]["version"] == 2, "versions of the modules' formats are kept"


@pytest.mark.parametrize("how", [ZIP, LEGACY], ids=["zip", "before 1.6"])
def test_numpy_in_a_torch_file_is_read_without_pickled_code(how, tmp_path):
    best = {"ap": np.float64(37.25), "history": np.arange(3.0), "at": np.int64(90)}
    (tmp_path / "m.pth").write_bytes(torch_file({"model": {"w": np.ones((2, 2))}, "best": best}, **how))
    checkpoint = read_checkpoint(tmp_path / "m.pth")
    assert checkpoint["best"]["ap"] == 37.25 and checkpoint["best"]["at"] == 90
    assert type(checkpoint["best"]["history"]) is type(checkpoint["model"]["w"]) is np.ndarray
    np.testing.assert_array_equal(checkpoint["best"]["history"], [0, 1, 2])


@pytest.mark.parametrize("name", ["model.pkl", "model.pth"])
def test_pickles_are_detectron2s_zoo_or_caffe2(name, tmp_path):
    state = arrays(weights())
    file = tmp_path / name
    file.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, 2))
    checkpoint = read_checkpoint(file)
    assert checkpoint.keys() == {"model", "__author__"} and checkpoint["__author__"] == "Detectron2 Model Zoo"
    assert checkpoint["model"].keys() == state.keys()

    caffe2 = {"conv1_w": np.ones((2, 2), "f4"), "conv1_w_momentum": np.ones((2, 2), "f4"), "fc1000_b": np.ones(3, "f4")}
    for content in (caffe2, {"blobs": caffe2, "cfg": "MODEL: {}"}):
        file.write_bytes(python2_pickle(content))
        checkpoint = read_checkpoint(file)
        assert checkpoint["__author__"] == "Caffe2" and checkpoint["matching_heuristics"] is True
        assert list(checkpoint["model"]) == ["conv1_w", "fc1000_b"]


def test_pycls_has_a_model_state(tmp_path):
    state = {"stem.conv.weight": torch.ones(2), "stem.bn.num_batches_tracked": torch.tensor(3)}
    (tmp_path / "model.pyth").write_bytes(torch_file({"model_state": state, "epoch": 3}))
    checkpoint = read_checkpoint(tmp_path / "model.pyth")
    assert list(checkpoint["model"]) == ["stem.conv.weight"]
    assert checkpoint["__author__"] == "pycls" and checkpoint["matching_heuristics"] is True


def test_safetensors_are_read(tmp_path):
    state = weights()
    save_file(state, tmp_path / "model.pth")
    assert torch.equal(read_checkpoint(tmp_path / "model.pth")["model"]["layer3.weight"], state["layer3.weight"])


def safetensors_bytes():
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + b"\x00\x00\x80\x3f"


def test_without_its_package_safetensors_say_how_to_get_it(tmp_path, monkeypatch, report):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes())
    with pytest.raises(CheckpointError, match=r"the package .* not installed: pip install safetensors$") as error:
        read_checkpoint(tmp_path / "model.safetensors")
    report("Broken files: what is said", "model.safetensors", str(error.value).replace(f"{tmp_path}/", ""))


def archive(**files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name, content in files.items():
            z.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return data.getvalue()


def tar():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as t:
        t.addfile(tarfile.TarInfo("storages"))
    return data.getvalue()


def npy():
    data = io.BytesIO()
    np.save(data, np.ones(3))
    return data.getvalue()


def torchscript():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/m.py"):
            z.writestr(name, b"")
    return data.getvalue()


def with_value(value):
    state = weights()
    state["layer2.weight"][1, 2] = value
    state["layer2.weight"][0, 0] = value
    state["layer4.weight"][0] = value
    return state


def saved():
    return torch_file({"model": weights()})


def pickled():
    return pickle.dumps({"model": arrays(weights()), "__author__": "x"}, 2)


# name of the file -> (content, what is said)
BROKEN = {
    "empty.pth": (lambda: b"", r"this is an empty file \(0 bytes\), not weights: get it again"),
    "zeros.pth": (lambda: bytes(5000), "begins with zeros, not weights: get it again"),
    "half.pth": (lambda: saved()[: len(saved()) // 2], "this file is truncated: the end of its archive is missing"),
    "half_legacy.pth": (
        lambda: (b := torch_file({"model": weights()}, **LEGACY))[: len(b) - 40],
        "this file is truncated",
    ),
    "half.pkl": (lambda: (b := pickled())[: len(b) // 2], "this file is truncated"),
    "one_byte_missing.pkl": (lambda: pickled()[:-1], "this file is truncated"),
    "login.pth": (
        lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
        "this is a web page or XML, not weights: open the address in a browser",
    ),
    "error.pkl": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "this is a web page"),
    "pointer.pth": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "this is a git-lfs pointer, .*`git lfs pull`",
    ),
    "retinanet.yaml": (lambda: b"MODEL:\n  WEIGHTS: ''\n", "this is a text file, not weights"),
    "comment.txt": (lambda: b"contents of\nthis file\n", "this is a text file, not weights"),
    "model.pth.gz": (lambda: gzip.compress(saved()), "this is a gzip archive, not weights: unpack it"),
    "model.tar": (tar, "this is a tar archive, not weights: unpack it"),
    "images.zip": (lambda: archive(a="b"), "this is a zip archive that torch.save did not write"),
    "scripted.pt": (torchscript, "this is a TorchScript program"),
    "model.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "this is an HDF5 file"),
    "array.npy": (npy, "this is a single numpy array"),
    "noise.pkl": (
        lambda: b"\xff\xfe\x01" + bytes(range(100)),
        r"this is no file of weights, or a damaged one \(unknown entry 255\)",
    ),
    "list.pth": (lambda: torch_file([torch.ones(2)]), "this is a list, not a dict with the weights as 'model'"),
    "tensor.pth": (lambda: torch_file(torch.ones(2)), "this is a Tensor, not a dict"),
    "list_in_dict.pth": (
        lambda: torch_file({"model": [torch.ones(2)]}),
        "its 'model' is a list, not a dict of tensors",
    ),
    "no_tensors.pth": (lambda: torch_file({"model": {}}), "its 'model' is an empty dict"),
    "lightning.ckpt": (
        lambda: torch_file({"epoch": 3, "network": weights()}),
        "no 'model' that is a dict of tensors; its keys are epoch, network",
    ),
    "mixed.pth": (
        lambda: torch_file({"model": {**weights(), "epoch": 3}}),
        "1 of its 6 values are no tensors: 'epoch' is a int",
    ),
    "words.pkl": (
        lambda: pickle.dumps({"model": {"a": np.ones(2), "b": np.array("text")}}, 2),
        "1 of its 2 values are no tensors: 'b' is a numpy array of <U4",
    ),
    "objects.pkl": (
        lambda: pickle.dumps({"model": {"a": np.array([None])}}, 2),
        r"more than weights \(it has an array of Python objects",
    ),
    "nan.pth": (
        lambda: torch_file({"model": with_value(float("nan"))}),
        "2 of 12 values of layer2.weight are not finite, and some of 1 other tensors",
    ),
    "inf.pkl": (
        lambda: pickle.dumps({"model": arrays(with_value(float("-inf")))}, 2),
        "diverged: 2 of 12 values of layer2.weight are not finite",
    ),
}


@pytest.mark.parametrize(
    "content",
    [{"a": 1}, {"a": 1, "b": torch.ones(2)}, {"a": torch.ones(2).to_sparse()}, {"a": torch.tensor(torch.nan)}],
)
def test_names_with_line_breaks_and_terminal_codes_are_printed_as_text(content, tmp_path):
    name = "layer\n\x1b[31m.weight"
    (tmp_path / "m.pth").write_bytes(torch_file({"model": {name if k == "a" else k: v for k, v in content.items()}}))
    with pytest.raises(CheckpointError, match=r"layer\\n\\x1b\[31m.weight") as error:
        read_checkpoint(tmp_path / "m.pth")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_explained(name, tmp_path, report):
    make, message = BROKEN[name]
    file = tmp_path / name
    file.write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(file)
    text = str(error.value)
    assert text.startswith(f"weights {file}: ") and "\n" not in text and len(text) < len(str(file)) + 330
    report("Broken files: what is said", name, text.replace(f"{tmp_path}/", ""))


def test_the_files_of_the_table_differ_in_nothing_but_what_is_broken(tmp_path):
    for name, content in (("whole.pth", saved()), ("whole.pkl", pickled())):
        (tmp_path / name).write_bytes(content)
        assert len(read_checkpoint(tmp_path / name)["model"]) == 5


def test_a_missing_file_and_a_folder_name_what_is_there(tmp_path, report):
    (tmp_path / "model_final.pth").write_bytes(saved())
    for path, message in [
        (tmp_path / "model_finl.pth", "there is no such file. Did you mean model_final.pth?"),
        (tmp_path / "nowhere" / "model.pth", f"there is no such file. There is no folder {tmp_path}/nowhere either"),
        (tmp_path, "this is a folder. Name a file in it: model_final.pth"),
    ]:
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(str(path))
        assert message in str(error.value)
        report(
            "Broken files: what is said",
            path.name if path != tmp_path else "output/",
            str(error.value).split(": ", 1)[1],
        )


@pytest.mark.parametrize(
    "make", [saved, pickled, lambda: torch_file({"model": weights()}, **LEGACY)], ids=["zip", "pickle", "before 1.6"]
)
def test_a_file_cut_anywhere_is_an_error(make, tmp_path):
    content = make()
    for length in {0, 1, 2, 5, 20, *np.random.randint(1, len(content), 25).tolist()}:
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize("protocol", [None, *range(6)], ids=lambda p: "Python 2" if p is None else f"protocol {p}")
def test_a_pickle_cut_anywhere_is_called_truncated(protocol, tmp_path):
    content = {"model": {"\u00e9": np.random.randn(2, 3).astype("f4")}, "__author__": "x", "time": 2**70}
    if protocol is None:
        data = python2_pickle({"model": {"e": content["model"]["\u00e9"]}, "__author__": "x" * 300, "time": 7})
    else:
        data = pickle.dumps(content, protocol)
    # The first bytes of protocols 0 and 1 may be any text.
    for length in range(5 if protocol in (0, 1) else 1, len(data)):
        (tmp_path / "cut.pkl").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="this file is truncated .*Get it again"):
            read_checkpoint(tmp_path / "cut.pkl")


def test_reading_changes_nothing_and_says_nothing(tmp_path, caplog):
    (tmp_path / "model.pth").write_bytes(torch_file({"model": OrderedDict(weights())}))
    before = set(torch.serialization.get_safe_globals())  # torch has them in no certain order
    with caplog.at_level(logging.DEBUG):
        read_checkpoint(tmp_path / "model.pth")
    assert not caplog.records
    assert set(torch.serialization.get_safe_globals()) == before
