"""Pickles that misuse what they may call: each ends in an error, at once and without the memory it asks for."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from retina_plugin.checkpoint import CheckpointError, read_checkpoint

from .pickle_programs import (
    DTYPE,
    EMPTY_ARRAY,
    PROTO,
    call,
    data,
    get,
    items,
    legacy,
    name,
    number,
    numbers,
    put,
    state,
    tensor,
    text,
    torch_zip,
)

FLOATS = np.arange(1, 9, dtype="f4").tobytes()
ARRAY = EMPTY_ARRAY + state(FLOATS)
FROM_BUFFER = name("numpy.core.numeric", "_frombuffer")


def model(*pairs):
    return PROTO + items(("model", items(*pairs))) + b"."


# name -> (program, what is said). Without the plugin's own checks, the first ones give memory of others or a crash.
PROGRAMS = {
    "a second state of an array": (model(("a", ARRAY + state(FLOATS))), "gives an object two states"),
    "a second state of an array that was viewed": (
        PROTO
        + EMPTY_ARRAY
        + state(FLOATS)
        + put(1)
        + b"0"
        + items(
            (
                "model",
                items(
                    ("view", call(FROM_BUFFER, get(1), DTYPE, numbers(8), text("C"))),
                    ("a", get(1) + state(FLOATS * 2)),
                ),
            )
        )
        + b".",
        "array whose data are no bytes",
    ),
    "a second state of a dtype": (
        model(("a", DTYPE + 2 * (b"(" + number(3) + text(">") + b"NNN" + 2 * number(-1) + number(0) + b"tb"))),
        "gives an object two states",
    ),
    "an array without a state": (model(("a", EMPTY_ARRAY)), "an array without data"),
    "an array that is larger than its data": (
        model(("a", EMPTY_ARRAY + state(FLOATS).replace(numbers(8), numbers(9)))),
        r"shape \(9,\) with 32 bytes",
    ),
    "an array of a negative size": (
        model(("a", EMPTY_ARRAY + state(FLOATS).replace(numbers(8), numbers(-2, -4)))),
        "shape is not a tuple of numbers",
    ),
    "an array of a class": (model(("a", call(name("numpy", "ndarray"), numbers(1000)))), "in another way than numpy"),
    "an item of an array": (model(("a", ARRAY + number(0) + number(1) + b"s")), "sets an item of a Array"),
    "an attribute of an array": (model(("a", ARRAY + items(("dtype", DTYPE)) + b"b")), "gives an object two states"),
    "memory that nobody wrote": (
        model(("a", call(name("torch", "FloatStorage"), number(1000)))),
        "makes a storage that is not one of the file's",
    ),
    "a method in place of a list's": (
        model(("a", b"]" + items(("append", number(1))) + b"b")),
        "sets the state of a list",
    ),
    "a call of a number": (model(("a", call(number(1), number(2)))), "calls a int"),
    "keywords": (PROTO + name("builtins", "dict") + b")" + items(("a", number(1))) + b"\x92.", "keywords"),
    "a key of nested tuples": (
        PROTO + b"}N" + 5000 * b"\x85" + b"Ns.",
        "a key that is a tuple",
    ),
    "an item of a set that is a frozenset of nested tuples": (
        PROTO + b"(N" + 5000 * b"\x85" + b"\x91.",
        "a key that is a tuple",
    ),
    "a key of many bits": (PROTO + b"}\x8a\x20" + b"\x11" * 32 + b"Ns.", "an integer key of more than 64 bits"),
}
LARGE_NUMBER = b"\x8a\x20" + b"\x11" * 32
# Of 40 lists, each twice in the next: who prints or compares them follows 2**40 paths.
DOUBLED = b"]" + put(9) + b"0" + 40 * (b"](" + get(9) + get(9) + b"e" + put(9) + b"0")
# Values that take long where they are printed, compared, hashed or multiplied.
PROGRAMS |= {
    "a dtype named by lists": (
        PROTO + DOUBLED + items(("model", call(name("numpy", "dtype"), get(9)))) + b".",
        "a type without a name",
    ),
    "an encoding named by lists": (
        PROTO + DOUBLED + items(("model", call(name("_codecs", "encode"), text("a"), get(9)))) + b".",
        "another encoding than latin1",
    ),
    "a shape of many dimensions": (
        PROTO
        + call(FROM_BUFFER, data(FLOATS), DTYPE, b"(" + 30_000 * (b"\x8a\x20" + b"\x11" * 32) + b"t", text("C"))
        + b".",
        "shape is not a tuple of numbers",
    ),
    "a long name many times": (
        b"\x80\x04" + text("a" * 1_000_000) + put(1) + text("B") + put(2) + 20_000 * (get(1) + get(2) + b"\x93") + b".",
        "names a function or class by 1000001 letters",
    ),
    "terminal codes in a key": (model(("a", tensor("\x1b[31m", 8, 0, (8,), (1,)))), r"x1b\[31m|not those|persistent"),
}
GROWTH = "many times more memory than the file"
# Programs of a few kilobytes that ask for much: by a length, by repetition, and by copies of copies.
LARGE = {
    "zeros by their number": (model(("a", call(name("builtins", "bytearray"), number(2**31 - 1)))), "else than bytes"),
    "a long text": (PROTO + b"\x8d" + struct.pack("<Q", 2**40) + b"a.", "truncated"),
    "a long byte array": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.", "truncated"),
    "a long frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"a.", "truncated"),
    "copies of bytes": (
        PROTO
        + text("a" * 4000)
        + put(1)
        + b"0("
        + 3000 * call(name("_codecs", "encode"), get(1), text("latin1"))
        + b"t.",
        GROWTH,
    ),
    "copies of lists": (
        PROTO + b"](" + 3000 * b"K\x01" + b"e" + put(1) + b"0(" + 3000 * call(name("builtins", "set"), get(1)) + b"t.",
        GROWTH,
    ),
    "copies of arrays": (
        PROTO
        + data(bytes(4000))
        + put(1)
        + DTYPE
        + put(2)
        + b"00("
        + 3000 * call(FROM_BUFFER, get(1), get(2), numbers(1000), text("C"))
        + b"t.",
        GROWTH,
    ),
    "marks": (PROTO + 40_000 * b"(" + b".", GROWTH),
    "empty lists": (PROTO + b"(" + 40_000 * b"]" + b"t.", GROWTH),
    "memo": (b"\x80\x04N" + 40_000 * b"\x94" + b".", GROWTH),
}


@pytest.mark.parametrize("kind", ["pickle", "zip", "before 1.6"])
@pytest.mark.parametrize("case", [*PROGRAMS, *LARGE])
def test_a_program_that_misuses_what_it_may_call_is_refused(case, kind, tmp_path):
    program, message = {**PROGRAMS, **LARGE}[case]
    file = tmp_path / "model.pth"
    file.write_bytes(program if kind == "pickle" else torch_zip(program) if kind == "zip" else legacy(program))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as error:
            read_checkpoint(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()
    assert peak < 64 * file.stat().st_size + 4 * 2**20


# name -> (tensor, what is said); the storage "0" has 8 floats
TENSORS = {
    "longer than its storage": (tensor("0", 8, 0, (9,), (1,)), "larger than its data"),
    "strides that leave its storage": (tensor("0", 8, 0, (2, 4), (5, 1)), "larger than its data"),
    "an offset behind its storage": (tensor("0", 8, 8, (1,), (1,)), "larger than its data"),
    "a negative offset": (tensor("0", 8, -1, (1,), (1,)), "shape is no tuple of numbers"),
    "a negative stride": (tensor("0", 8, 7, (8,), (-1,)), "shape is no tuple of numbers"),
    "a shape that overflows": (tensor("0", 8, 0, (2**30, 2**30, 2**30), (0, 0, 0)), GROWTH),
    "one number many times": (tensor("0", 8, 0, (2**30,), (0,)), GROWTH),
    "a storage of another size": (tensor("0", 9, 0, (9,), (1,)), "has 32 bytes|too early|larger|another size"),
    "a storage of a negative size": (tensor("0", -1, 0, (1,), (1,)), "without a type, a name or a size"),
    "a storage that the file lacks": (tensor("1", 8, 0, (8,), (1,)), "entry data/1 is missing|not those of its"),
    "a storage of no type": (tensor("0", 8, 0, (8,), (1,), kind="Tensor"), "without a type, a name or a size"),
}


@pytest.mark.parametrize("kind", ["zip", "before 1.6"])
@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_lies_within_the_bytes_of_its_file(case, kind, tmp_path):
    value, message = TENSORS[case]
    program, numbers_of_file = model(("a", value)), struct.pack("<q", 8) + FLOATS
    content = torch_zip(program, {"0": FLOATS}) if kind == "zip" else legacy(program, "0", numbers_of_file)
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "model.pth")

    program = model(("a", tensor("0", 8, 1, (3, 2), (2, 1))), ("b", tensor("0", 8, 0, (2, 2), (0, 1))))
    content = torch_zip(program, {"0": FLOATS}) if kind == "zip" else legacy(program, "0", numbers_of_file)
    (tmp_path / "model.pth").write_bytes(content)
    weights = read_checkpoint(tmp_path / "model.pth")["model"]
    assert weights["a"].tolist() == [[2, 3], [4, 5], [6, 7]] and weights["b"].tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize("constructor", ["FloatTensor", "Tensor", "IntTensor", "cuda.FloatTensor"])
def test_a_constructor_of_tensors_gives_no_memory(constructor, tmp_path):
    module, _, attribute = f"torch.{constructor}".rpartition(".")
    (tmp_path / "model.pth").write_bytes(torch_zip(model(("a", call(name(module, attribute), number(1000))))))
    with pytest.raises(CheckpointError, match=f"its keys are a|'a' is a.*{attribute}"):
        read_checkpoint(tmp_path / "model.pth")


def test_containers_that_occur_many_times_or_in_themselves_are_read_once(tmp_path):
    """Of 60 lists, each twice in the next: 2**60 lists for who follows each path."""
    doubled = b"]" + put(1) + b"0" + 60 * (b"](" + get(1) + get(1) + b"e" + put(1) + b"0")
    circle = b"]" + put(2) + get(2) + b"a"
    more = (("doubled", get(1)), ("circle", circle), ("class_names", get(1)))
    file = tmp_path / "model.pkl"
    file.write_bytes(PROTO + doubled + items(("model", items(("a", ARRAY))), *more) + b".")
    checkpoint = read_checkpoint(file)
    assert checkpoint["model"]["a"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert checkpoint["circle"][0] is checkpoint["circle"] and len(checkpoint["doubled"]) == 2


def test_what_two_arrays_share_in_the_file_they_do_not_share_in_memory(tmp_path):
    shared = data(FLOATS) + put(1) + b"0"
    arrays = [call(FROM_BUFFER, get(1), DTYPE, numbers(8), text("C")) for _ in range(2)]
    (tmp_path / "model.pkl").write_bytes(PROTO + shared + items(("model", items(*zip("ab", arrays)))) + b".")
    weights = read_checkpoint(tmp_path / "model.pkl")["model"]
    weights["a"][:] = 0
    assert weights["b"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_bytes_in_the_other_order_are_turned(tmp_path):
    values = {"f4": torch.randn(6), "c8": torch.randn(3, dtype=torch.complex64), "i8": torch.randint(1000, (4,))}
    kinds = {"f4": "FloatStorage", "c8": "ComplexFloatStorage", "i8": "LongStorage"}
    tensors = [(key, tensor(key, len(value), 0, (len(value),), (1,), kinds[key])) for key, value in values.items()]
    storages = {key: value.numpy().astype(f">{key}").tobytes() for key, value in values.items()}
    program = PROTO + items(("model", items(tensors[0])), *tensors[1:]) + b"."
    (tmp_path / "model.pth").write_bytes(torch_zip(program, storages, byte_order="big"))
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert torch.equal(checkpoint["model"]["f4"], values["f4"])
    assert torch.equal(checkpoint["c8"], values["c8"]) and torch.equal(checkpoint["i8"], values["i8"])


@pytest.mark.parametrize("protocol", range(6))
def test_a_file_of_many_small_objects_is_within_its_bounds(protocol, tmp_path):
    history = {"loss": [[float(value), i] for i, value in enumerate(np.random.rand(10_000))], "empty": [{}, [], ()]}
    more = {"order": list(range(40_000)), "names": [f"image_{i}.jpg" for i in range(4_000)], "history": history}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"a": np.ones(2)}, **more}, protocol))
    checkpoint = read_checkpoint(tmp_path / "model.pkl")
    assert {key: checkpoint[key] for key in more} == more
