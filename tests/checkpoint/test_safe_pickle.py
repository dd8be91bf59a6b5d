"""Hostile files are refused before any of them runs, and what weights need is read as it is."""

import functools
import importlib
import io
import logging
import os
import pickle
import subprocess
import tracemalloc
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from retina_plugin.checkpoint import CheckpointError, read_checkpoint, safe_pickle

from .conftest import python2_pickle


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args

    def __call__(self):
        raise AssertionError("a call that returns what is called is made by pickle")


def touch(marker):
    return Call(os.system, f"touch {marker}")


def in_numpy_file(marker, folder):
    np.save(folder / "inner.npy", np.array([touch(marker)], dtype=object), allow_pickle=True)
    return Call(np.load, str(folder / "inner.npy"), None, True)


def in_torch_file(marker, folder):
    torch.save([touch(marker)], folder / "inner.pth")
    return Call(torch.load, str(folder / "inner.pth"), None, Call(importlib.import_module, "pickle"))


def in_torch_storage(marker, folder):
    data = io.BytesIO()
    torch.save([touch(marker)], data)
    return Call(torch.storage._load_from_bytes, data.getvalue())


def create(marker):
    return f"open({str(marker)!r}, 'w').close()"


def objects(*items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


# name -> (what creates the file `marker`, protocol, first forbidden global)
HOSTILE = {
    **{f"os.system, protocol {p}": (lambda m, _: touch(m), p, "posix.system") for p in range(6)},
    "eval": (lambda m, _: Call(eval, create(m)), 2, "builtins.eval"),
    "exec": (lambda m, _: Call(exec, create(m)), 4, "builtins.exec"),
    "subprocess": (lambda m, _: Call(subprocess.check_call, ["touch", str(m)]), 2, "subprocess.check_call"),
    "functools.partial": (lambda m, _: Call(functools.partial(os.system, f"touch {m}")), 2, "functools.partial"),
    "getattr": (lambda m, _: Call(Call(getattr, Call(importlib.import_module, "os"), "system"), f"touch {m}"), 2, None),
    "numpy.load": (in_numpy_file, 2, "numpy.load"),
    "numpy.testing": (lambda m, _: Call(np.testing._private.utils.runstring, create(m), {}), 2, None),
    "torch.load": (in_torch_file, 2, "torch.serialization.load"),
    "torch's storages": (in_torch_storage, 2, "torch.storage._load_from_bytes"),
    "in an array of objects, protocol 2": (lambda m, _: objects(1, touch(m)), 2, "posix.system"),
    "in an array of objects, protocol 5": (lambda m, _: objects(touch(m)), 5, "posix.system"),
    "deep in containers": (lambda m, _: OrderedDict(a=[({"b": {1, 2}}, (touch(m),))]), 4, "posix.system"),
    "after a good array": (lambda m, _: [np.ones(3), touch(m)], 2, "posix.system"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name_and_has_not_run(name, tmp_path, report):
    make, protocol, forbidden = HOSTILE[name]
    marker = tmp_path / "it_ran"
    data = pickle.dumps({"model": {"weight": make(marker, tmp_path)}, "__author__": "somebody"}, protocol)
    pickle.loads(data)
    assert marker.exists(), "this file does harm where pickles are trusted"
    marker.unlink()

    file = tmp_path / "model.pkl"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="unsafe: it names") as error:
        read_checkpoint(file)
    assert not marker.exists()
    if forbidden is None:
        forbidden = {"getattr": "builtins.getattr", "numpy.testing": _full_name(np.testing._private.utils.runstring)}[
            name
        ]
    assert f"it names {forbidden}, which" in str(error.value)
    report("Hostile files: what is named", name, forbidden)


def _full_name(function):
    return f"{function.__module__}.{function.__qualname__}"


@pytest.mark.parametrize(
    "data, forbidden",
    [
        (b"cos\nsystem\n(S'touch MARKER'\ntR.", "os.system"),
        (b"(S'touch MARKER'\nios\nsystem\n.", "os.system"),  # the opcode INST
        (b"(dp0\nS'model'\np1\ncposix\nsystem\n(S'touch MARKER'\ntRs.", "posix.system"),
        (b"\x80\x02c__builtin__\neval\n(X\x17\x00\x00\x00__import__('os').getcwdtR.", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x0ctouch MARKER\x85R.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x94\x8c\x13testing.runstring.x\x94\x93.", "numpy.testing.runstring.x"),
    ],
)
def test_a_pickle_written_by_hand_is_refused_by_name(data, forbidden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"it names {forbidden}, which"):
        read_checkpoint("model.pkl")
    assert os.listdir(tmp_path) == ["model.pkl"]


WAYS = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "before 1.6": {"_use_new_zipfile_serialization": False},
    "before 1.6, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["os.system, protocol 2", "eval", "in an array of objects, protocol 2", "torch.load"])
def test_a_hostile_torch_file_is_refused_by_name_and_has_not_run(name, way, tmp_path, caplog):
    make, _, forbidden = HOSTILE[name]
    marker, file = tmp_path / "it_ran", tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.ones(3)}, "more": make(marker, tmp_path)}, file, **WAYS[way])
    with pytest.raises(CheckpointError, match=f"unsafe: it names {forbidden}, which"):
        read_checkpoint(file)
    assert not marker.exists()
    with caplog.at_level(logging.WARNING, "retina_plugin"):
        assert read_checkpoint(file, allow_pickle=True)["model"]["weight"].sum() == 3
    assert marker.exists(), "with allow_pickle it is read, and runs"
    assert f"names {forbidden}, and is read all the same" in caplog.text and "whom you trust" in caplog.text


def test_with_allow_pickle_anything_is_read_with_a_warning(tmp_path, caplog):
    class_of_nobody = {"model": {"weight": np.ones(2)}, "__author__": "me", "when": functools.partial(int, base=2)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(class_of_nobody))
    with caplog.at_level(logging.WARNING, "retina_plugin"):
        assert read_checkpoint(tmp_path / "model.pkl", allow_pickle=True)["when"]("101") == 5
    assert "names functools.partial" in caplog.text
    caplog.clear()
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"weight": np.ones(2)}}))
    read_checkpoint(tmp_path / "model.pkl", allow_pickle=True)
    assert not caplog.records, "a file that is safe is read safely, without a warning"


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_and_containers_come_back_as_they_were(protocol):
    array = np.random.randn(2, 3, 4)
    values = {
        "arrays": [array, np.asfortranarray(array), array[::2, 1], np.float32(array).astype(">f4"), np.arange(6)],
        "kinds": [np.array(kind) for kind in (True, 3, 2j, "text", b"bytes")] + [np.zeros((0, 3)), np.float16([1, 2])],
        "scalars": (np.float64(0.1), np.int64(-7), np.bool_(True), np.float32(2.5)),
        "containers": OrderedDict(
            a={1, 2}, b=[frozenset("x"), frozenset({3, 4})], c=(1, [2.5, None]), d=defaultdict(list, e=[True])
        ),
        "plain": [b"", b"\x00\xff", "text \u00e9", 2**100, 1e300, 3 + 4j, bytearray(b"xyz")],
    }
    read = safe_pickle.load(io.BytesIO(pickle.dumps(values, protocol)))
    assert repr(read["containers"]) == repr(values["containers"])
    assert read["plain"] == values["plain"] and read["scalars"] == values["scalars"]
    assert [type(x) for x in read["scalars"]] == [type(x) for x in values["scalars"]]
    for name in ("arrays", "kinds"):
        for ours, expected in zip(read[name], values[name], strict=True):
            assert type(ours) is np.ndarray and ours.dtype == expected.dtype.newbyteorder("=")
            assert ours.flags.writeable
            np.testing.assert_array_equal(ours, expected)


def test_what_python_2_wrote_is_read_as_text_and_arrays():
    weights = {f"res{i}_w": np.random.randn(2, i).astype("f4") for i in range(1, 200)}
    read = safe_pickle.load(io.BytesIO(python2_pickle({"blobs": weights, "cfg": "DEPTH: 50\n" * 40})))
    assert read["cfg"] == "DEPTH: 50\n" * 40 and read["blobs"].keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(read["blobs"][name], value)
    expected = pickle.loads(python2_pickle({"blobs": weights}), encoding="latin1")
    np.testing.assert_array_equal(expected["blobs"]["res7_w"], weights["res7_w"])  # the bytes are a real pickle


def test_old_and_new_names_of_numpy_are_the_same():
    array = np.random.randn(5)
    for protocol in (2, 5):
        new = pickle.dumps(array, protocol=protocol)
        assert b"numpy._core" in new or b"numpy.core" in new
        module = b"multiarray" if protocol == 2 else b"numeric"
        for core in (b"core", b"_core"):
            names = {b"numpy._core." + module, b"numpy.core." + module} - {b"numpy." + core + b"." + module}
            data = new.replace(names.pop(), b"numpy." + core + b"." + module)
            if protocol == 5:  # without the frame, whose length is another now, and with the length of the name
                assert new[11:12] == pickle.SHORT_BINUNICODE
                data = b"\x80\x05\x8c" + bytes([len(b"numpy." + core + b"." + module)]) + data[13:]
            np.testing.assert_array_equal(safe_pickle.load(io.BytesIO(data)), array)


@pytest.mark.parametrize(
    "value, message",
    [
        (objects(1, "two"), "array of Python objects"),
        (np.zeros(2, dtype="f4,i4"), "array of type 'V8'"),
        (np.zeros(2, dtype="M8[s]"), "array of type 'M8'"),
        (np.zeros(2, dtype=[("a", object)]), "array of type 'V8'"),
    ],
)
def test_arrays_that_are_no_numbers_are_refused(value, message):
    for protocol in (2, 5):
        with pytest.raises(safe_pickle.UnsafePickle, match=message):
            safe_pickle.load(io.BytesIO(pickle.dumps([value], protocol)))


def test_a_dtype_cannot_describe_what_is_not_there():
    """numpy believes a pickled dtype: with this one, it would take the eight bytes of data for an object's address."""
    name = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR"
    state = b"(K\x03U\x01|N(U\x01at}U\x01a(cnumpy\ndtype\n(U\x02O8K\x00K\x01tRK\x00tsK\x08K\x01K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01t"
    data = b"\x80\x02" + array + name + state + b"\x89U\x08AAAAAAAAtb."
    with pytest.raises(safe_pickle.UnsafePickle, match="array of structures"):
        safe_pickle.load(io.BytesIO(data))


@pytest.mark.parametrize("target", sorted(safe_pickle.ADMITTED))
def test_a_pickle_cannot_change_what_it_is_read_with(target):
    """The opcode BUILD sets attributes of any object that a pickle can reach."""
    call = safe_pickle.ADMITTED[target]
    before = {name: getattr(call, name) for name in dir(call) if name != "__dict__"}
    module, name = target.rsplit(".", 1)
    reach = f"c{module}\n{name}\n".encode()
    for attribute in (b"__setstate__", b"__new__", b"__call__", b"load", b"__code__"):
        state = b"N}X" + len(attribute).to_bytes(4, "little") + attribute + b"cbuiltins\nset\ns\x86b."
        with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError)):
            safe_pickle.load(io.BytesIO(b"\x80\x02" + reach + state))
    after = {name: getattr(call, name) for name in dir(call) if name != "__dict__"}
    assert {k: v for k, v in after.items() if callable(v)}.keys() == {
        k: v for k, v in before.items() if callable(v)
    }.keys()
    np.testing.assert_array_equal(safe_pickle.load(io.BytesIO(pickle.dumps(np.arange(3.0), 2))), [0, 1, 2])


def test_a_memo_index_allocates_nothing():
    """The unpickler in C would allocate 2**25 pointers, 256 MiB, for the index 2**24 of an empty dict."""
    data = b"\x80\x02}r" + (2**24).to_bytes(4, "little") + b"."
    tracemalloc.start()
    try:
        assert safe_pickle.load(io.BytesIO(data)) == {}
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_any_damage_ends_in_an_error_or_in_finite_weights(tmp_path):
    data = bytearray(pickle.dumps({"model": {f"w{i}": np.random.randn(2, 3) for i in range(3)}, "__author__": "x"}, 2))
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(np.random.randint(1, 4)):
            damaged[np.random.randint(len(damaged))] = np.random.randint(256)
        (tmp_path / "model.pkl").write_bytes(damaged[: np.random.randint(1, 2 * len(damaged))])
        try:
            weights = read_checkpoint(tmp_path / "model.pkl")["model"]
        except CheckpointError:
            continue
        assert all(np.isfinite(value).all() for value in weights.values())
