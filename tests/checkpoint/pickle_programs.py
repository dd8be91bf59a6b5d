"""Pickles written by hand, from the parts that pickle's own writer would put in another order."""

import io
import pickle
import struct
import zipfile

PROTO = b"\x80\x02"


def text(value):
    content = value.encode(errors="surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def data(value):
    return b"B" + struct.pack("<I", len(value)) + value


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(*values):
    """A tuple of numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def call(function, *args):
    return function + b"(" + b"".join(args) + b"tR"


def put(index):
    return b"q" + bytes([index])


def get(index):
    return b"h" + bytes([index])


def items(*pairs):
    """A dict."""
    return b"}(" + b"".join(text(key) + value for key, value in pairs) + b"u"


DTYPE = call(name("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
EMPTY_ARRAY = call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), numbers(0), data(b"b"))


def state(content, dtype=DTYPE):
    """The state of an array of one dimension, with the instruction that sets it."""
    return b"(" + number(1) + numbers(len(content) // 4) + dtype + b"\x89" + data(content) + b"tb"


def storage(key, count, kind="FloatStorage"):
    """A reference to a storage of a torch file."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(key, count, offset, size, stride, kind="FloatStorage"):
    parts = (storage(key, count, kind), number(offset), numbers(*size), numbers(*stride), b"\x89", b"N")
    return call(name("torch._utils", "_rebuild_tensor_v2"), *parts)


def torch_zip(program, storages=(), compression=zipfile.ZIP_STORED, byte_order="little"):
    """A torch file with a program, and storages by their keys."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", byte_order)
        archive.writestr("archive/version", "3\n")
        for key, content in dict(storages).items():
            archive.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def legacy(program, keys=(), storages=b""):
    """A torch file as before version 1.6."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*head, program, pickle.dumps(list(keys), 2), storages])
