"""Reads random and damaged files of weights, and looks for crashes, hangs, foreign errors, side effects and memory.

``python -m tests.checkpoint.fuzz --minutes 60`` runs until then and keeps each file that is a finding; a few thousand
files run with the tests. A file is made from its number and the seed, so that it can be made again.
"""

import argparse
import ctypes
import io
import json
import os
import pickle
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer, formats, read_checkpoint, safe_pickle
from retina_plugin.checkpoint.torch_files import load_legacy, load_zip

from . import pickle_programs as parts

SECONDS = 20  # for one file
GROWTH, ALWAYS = 64, 64 * 2**20  # bytes of memory for each byte of a file, and for any file
BATCH = 500
LIBC, M_PERTURB = ctypes.CDLL(None), -6  # glibc's <malloc.h>

NAMES = [
    *safe_pickle.ADMITTED,
    *("torch.FloatStorage", "torch.LongStorage", "torch.QInt8Storage", "torch.storage.UntypedStorage", "torch.float16"),
    *("torch.FloatTensor", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.per_tensor_affine", "torch.qint8"),
    *("argparse.Namespace", "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "builtins.object"),
    *("copyreg._reconstructor", "numpy.random._pickle.__randomstate_ctor", "pathlib.PosixPath", "datetime.datetime"),
    *("os.system", "builtins.eval", "numpy.load", "torch.load", "subprocess.Popen"),
]
# What no reading of weights does.
FORBIDDEN_EVENTS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.putenv"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "shutil.rmtree", "pickle.find_class", "ctypes.dlopen"),
)


class Network(nn.Module):
    """Takes what the files that are not damaged have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        self.num_classes = 3


class Programs:
    """Makes pickles whose parts are what they should be, with mistakes."""

    def __init__(self, rng, has_storages):
        self.rng, self.has_storages = rng, has_storages
        self.mistakes = rng.choice((0, 0.01, 0.05, 0.5))

    def program(self):
        shared = (b"]", b"}", parts.EMPTY_ARRAY, parts.DTYPE, parts.data(bytes(216)), self.value(2))
        prefix = b"".join(value + parts.put(i) + b"0" for i, value in enumerate(shared))
        pairs = [(name, self.value(3)) for name in ("body.0.weight", "body.1.running_mean", "x")]
        if self.has_storages and self.rng.random() < 0.6:
            pairs = [("body.0.weight", parts.tensor(*LARGE)), ("body.1.running_mean", parts.tensor(*SMALL))]
        more = [(self.text(), self.value(4)) for _ in range(self.rng.randrange(3))]
        content = parts.items(("model", parts.items(*pairs)), *more) if self.rng.random() < 0.9 else self.value(5)
        return b"\x80" + bytes([self.rng.choice((2, 2, 3, 4, 5))]) + prefix + content + b"."

    def value(self, depth):
        return self.any_value(depth) if self.rng.random() < self.mistakes else self.right_value(depth)

    def right_value(self, depth):
        """A value as a pickler writes it."""
        rng = self.rng
        kind = rng.randrange(3 if depth == 0 else 10)
        if kind == 0:
            return rng.choice(
                (parts.number(rng.randrange(-9, 100)), b"G" + struct.pack(">d", rng.random()), b"N", b"\x88")
            )
        if kind == 1:
            return rng.choice((parts.text(self.text()), parts.data(bytes(216)), parts.get(rng.randrange(6))))
        if kind == 2:
            if self.has_storages and rng.random() < 0.6:
                return parts.tensor(*rng.choice((LARGE, SMALL)))
            return parts.EMPTY_ARRAY + parts.state(np.full(rng.choice((3, 54)), rng.random(), "f4").tobytes())
        if kind == 3:
            return b"](" + self.values(depth) + b"e"
        if kind == 4:
            return b"(" + self.values(depth) + b"t"
        if kind == 5:
            return parts.items(*((self.text(), self.value(depth - 1)) for _ in range(rng.randrange(4))))
        if kind == 6:
            return self.value(depth - 1) + parts.put(rng.randrange(6))
        if kind == 7:
            made = parts.call(parts.name("argparse", "Namespace"), self.values(depth))
            return made + (parts.items((self.text(), self.value(depth - 1))) + b"b" if rng.random() < 0.5 else b"")
        if kind == 8:
            ordered = parts.call(parts.name("collections", "OrderedDict"))
            return ordered + b"(" + parts.text(self.text()) + self.value(depth - 1) + b"u"
        return parts.call(parts.name("__builtin__", "set"), b"](" + b"".join(map(parts.number, range(3))) + b"e")

    def any_value(self, depth):
        """A value whose parts may be anything."""
        rng = self.rng
        if depth == 0 or rng.random() < 0.15:
            return self.leaf()
        kind = rng.choices(range(12), (6, 12, 3, 12, 12 * self.has_storages, 4, 6, 4, 1, 1, 1, 1))[0]
        if kind == 0:
            return b"(" + self.values(depth) + rng.choice((b"t", b"l", b"d", b"\x91"))
        if kind == 1:
            return (
                rng.choice((b"]", b"}", b")", b"\x8f")) + b"(" + self.values(depth) + rng.choice((b"e", b"u", b"\x90"))
            )
        if kind == 2:
            target = parts.get(rng.randrange(4)) if rng.random() < 0.7 else self.value(depth - 1)
            state = parts.state(bytes(216)) if rng.random() < 0.7 else self.value(depth - 1) + b"b"
            return target + state
        if kind == 3:
            return self.array(depth)
        if kind == 4:
            return self.tensor()
        if kind == 5:
            return self.value(depth - 1) + rng.choice((parts.put(rng.randrange(6)), b"\x94"))
        if kind == 6:
            return parts.get(rng.randrange(6))
        if kind == 7:
            return self.name() + b"(" + self.values(depth) + b"t" + rng.choice((b"R", b"\x81"))
        if kind == 8:
            return b"(" + self.name() + self.values(depth) + b"o"
        if kind == 9:
            return (
                self.value(depth - 1)
                + self.value(depth - 1)
                + self.value(depth - 1)
                + rng.choice((b"s", b"\x87", b"\x92"))
            )
        if kind == 10:
            return self.value(depth - 1) + rng.choice((b"\x85", b"2", b"Q", b"0", b"a"))
        return self.opcode()

    def values(self, depth):
        return b"".join(self.value(depth - 1) for _ in range(self.rng.randrange(4)))

    def leaf(self):
        rng = self.rng
        kind = rng.randrange(9)
        if kind < 2:
            return parts.number(rng.choice((0, 1, 2, 3, -1, 2**31 - 1, -(2**31), rng.randrange(100))))
        if kind == 2:
            return b"G" + struct.pack(">d", rng.choice((0.0, 1.5, float("nan"), float("inf"), -1e300)))
        if kind < 5:
            return parts.text(self.text())
        if kind == 5:
            return parts.data(rng.randbytes(rng.choice((0, 1, 4, 24, 72))))
        if kind == 6:
            return b"\x8a" + bytes([rng.randrange(12)]) + rng.randbytes(11)
        return rng.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", self.name()))

    def text(self):
        words = ("model", "blobs", "state_dict", "model_state", "class_names", "matching_heuristics", "__author__", "a")
        words += (
            "_metadata",
            "",
            "Caffe2",
            "latin1",
            "C",
            "f4",
            "O",
            "\x1b[31m",
            "\ud800",
            "body.0.weight",
            "version",
            "0",
        )
        return self.rng.choice(words) if self.rng.random() < 0.95 else "w" * self.rng.randrange(5000)

    def name(self):
        module, _, attribute = self.rng.choice(NAMES).rpartition(".")
        return parts.name(module, attribute)

    def array(self, depth):
        rng = self.rng
        if rng.random() < 0.5:
            return parts.EMPTY_ARRAY + parts.state(np.float32(rng.random() * np.ones(rng.choice((3, 54)))).tobytes())
        count = rng.choice((0, 1, 6, 54))
        content = rng.randbytes(4 * count) if rng.random() < 0.3 else bytes(4 * count)
        kind = rng.choice(("f4", "f4", "f4", "i4", "u1", "U1", "O", "f8", "c8", "b1", "V4", "S4", "f16", "M8"))
        dtype = parts.call(parts.name("numpy", "dtype"), parts.text(kind), b"\x89", b"\x88")
        if rng.random() < 0.2:
            state = b"(" + parts.number(3) + parts.text(rng.choice("<>|=O")) + b"NNN" + self.values(1) + b"t"
            dtype += state + b"b"
        shape = parts.numbers(*rng.choice(((count,), (count, 1), (1, count), (3, 2, 3, 3), (-1,), (2**31 - 1, 2), ())))
        data = parts.data(content) if rng.random() < 0.8 else self.value(depth - 1)
        if rng.random() < 0.3:
            order = parts.text(rng.choice("CFK"))
            return parts.call(
                parts.name("numpy.core.numeric", "_frombuffer"), data, dtype, shape, order, *[shape] * rng.randrange(2)
            )
        state = b"(" + parts.number(1) + shape + dtype + rng.choice((b"\x88", b"\x89", b"N")) + data + b"t"
        return parts.EMPTY_ARRAY + b"".join([state + b"b"] * rng.choice((0, 1, 1, 1, 1, 2)))

    def tensor(self):
        rng = self.rng
        if rng.random() < 0.5:
            return rng.choice(
                (parts.tensor("0", 54, 0, (3, 2, 3, 3), (18, 9, 3, 1)), parts.tensor("1", 3, 0, (3,), (1,)))
            )
        kind = rng.choice(("FloatStorage",) * 5 + ("LongStorage", "BoolStorage", "ComplexFloatStorage", "QInt8Storage"))
        size = rng.choice(((54,), (3, 2, 3, 3), (3,), (1,), (), (0,), (55,), (2**31 - 1,), (2**31 - 1,) * 3, (-1, 2)))
        stride = tuple(rng.choice((0, 1, 1, 3, 9, 18, -1, 2**31 - 1)) for _ in size)
        key, count = rng.choice((("0", 54), ("1", 3), ("2", 0), ("3", 1), ("0", 55), ("4", 2**31 - 1), ("0", -1)))
        return parts.tensor(key, count, rng.choice((0, 0, 0, 1, 53, -1, 2**31 - 1)), size, stride, kind)

    def opcode(self):
        return bytes([self.rng.randrange(256)]) + self.rng.randbytes(self.rng.choice((0, 0, 1, 4, 8)))


LARGE, SMALL = ("0", 54, 0, (3, 2, 3, 3), (18, 9, 3, 1)), ("1", 3, 0, (3,), (1,))
STORAGES = {"0": bytes(216), "1": bytes(12), "2": b"", "3": bytes(4)}


def whole_files():
    """Files that are not damaged, of each format."""
    model = Network()
    history = {"loss": [[0.5, i] for i in range(20)], "best": np.float64(3.5), "at": np.arange(3)}
    content = {"model": model.state_dict(), "iteration": 3, "class_names": ["a", "b", "c"], "history": history}
    arrays = {"model": {name: value.numpy() for name, value in model.state_dict().items()}, "__author__": "x"}
    other = {"state_dict": OrderedDict(model.state_dict()), "args": argparse.Namespace(lr=0.1, path=Path("x"))}
    files = [save(model.state_dict())]
    for value in (content, other):
        for is_zip in (True, False):
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=is_zip, pickle_protocol=2)
            files.append(file.getvalue())
    return files + [pickle.dumps(arrays, protocol) for protocol in range(6)]


def mutated(rng, content):
    """A copy with bytes changed, cut, repeated or moved."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        start = rng.randrange(len(content) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 40))
        action = rng.randrange(6)
        if action < 2:
            content[start : start + 1] = bytes([rng.randrange(256)])
        elif action == 2:
            content[start : start + length] = rng.choice((b"\xff", b"\x00", b"\x7f")) * length
        elif action == 3:
            del content[start : start + length]
        elif action == 4:
            content[start:start] = content[start : start + length] or b"\x80"
        else:
            other = rng.randrange(len(content) + 1)
            content[start : start + length] = content[other : other + length]
    return bytes(content[: rng.randrange(len(content) + 1)]) if rng.random() < 0.05 else bytes(content)


def safetensors(rng):
    """A file with a header of random entries."""
    dtypes = ("F32", "F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "X", 3, None)
    sizes = (0, 1, 2, 3, 54, 2**31, 2**63, 2**64, -1, 1.5, "3", None)
    header = {
        rng.choice(("body.0.weight", "x", "", "\x1b[31m", "__metadata__")): {
            "dtype": rng.choice(dtypes),
            "shape": [rng.choice(sizes) for _ in range(rng.randrange(5))],
            "data_offsets": [rng.choice(sizes), rng.choice((*sizes, 216))],
        }
        for _ in range(rng.randrange(4))
    }
    text = json.dumps(header).encode()
    if rng.random() < 0.3:
        text = mutated(rng, text)
    length = rng.choice((len(text), len(text), len(text), len(text) + 1, 2**40, 2**63, 99_999_999))
    return length.to_bytes(8, "little") + text + bytes(rng.choice((0, 216, 300)))


def make(seed, number, whole):
    """The bytes of a file."""
    rng = random.Random(f"{seed}, {number}")
    kind = number % 8
    if kind < 3:
        program = Programs(rng, has_storages=kind > 0).program()
        program = mutated(rng, program) if rng.random() < 0.2 else program
        if kind == 0:
            return program
        if kind == 1:
            return parts.torch_zip(program, STORAGES)
        used = {key: data for key, data in STORAGES.items() if parts.storage(key, len(data) // 4) in program}
        data = b"".join(struct.pack("<q", len(data) // 4) + data for data in used.values())
        return parts.legacy(program, used, data)
    if kind == 3:  # a program of a real file, damaged, in an archive that is not
        with zipfile.ZipFile(io.BytesIO(whole[rng.choice((1, 3))])) as archive:
            files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        storages = {name.removeprefix("data/"): data for name, data in files.items() if name.startswith("data/")}
        return parts.torch_zip(mutated(rng, files["data.pkl"]), storages)
    if kind == 4:
        return safetensors(rng)
    return mutated(rng, rng.choice(whole))


def contents(path):
    """All that a file holds, in one text, as the pickles and archives in it are read."""
    kind = formats.format_of(path)
    if kind == formats.PICKLE:
        with open(path, "rb") as file:
            pending = [safe_pickle.load(file)]
    else:
        pending = [{formats.ZIP: load_zip, formats.LEGACY: load_legacy, formats.SAFETENSORS: load_file}[kind](path)]
    seen, texts = set(), []
    while pending:
        value = pending.pop()
        if isinstance(value, (dict, list, tuple)):
            if id(value) not in seen:
                seen.add(id(value))
                pending += [*value.keys(), *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor):
            texts.append(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex() if value.numel() else "")
        elif isinstance(value, np.ndarray):
            texts.append(value.tobytes().hex())
        elif isinstance(value, (set, frozenset)):  # in no certain order
            texts += sorted(map(repr, value))
        else:
            texts.append(repr(value))
    return "|".join(texts)


def contents_with(pattern, path):
    """The same while malloc fills what it gives and takes back with a pattern; None if it cannot be read."""
    LIBC.mallopt(M_PERTURB, pattern)
    try:
        return contents(path)
    except TimeoutError:
        raise
    except Exception:
        return None
    finally:
        LIBC.mallopt(M_PERTURB, 0)


def memory(field):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def read(path, model):
    """Read a file, load it, and return what happened and, if it should not have, why."""
    before, start = memory("VmRSS"), time.monotonic()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    outcome, problem = "read", None
    try:
        if contents_with(0x55, path) != contents_with(0xAA, path):
            problem = "values that are not in the file: memory that nobody wrote, or that was freed"
        read_checkpoint(path)
        outcome = "loaded"
        RetinaCheckpointer(model).load(str(path))
    except CheckpointError as error:
        outcome = "refused" if outcome == "read" else "does not fit"
        if outcome == "refused" and "\n" in str(error):
            problem = problem or f"an error of several lines: {error}"
        if any(not torch.equal(value, weights[name]) for name, value in model.state_dict().items()):
            problem = problem or "an error, and another model than before"
    except TimeoutError:
        problem = f"more than {SECONDS} seconds"
    except BaseException:
        problem = traceback.format_exc()
    model.load_state_dict(weights)
    grown = memory("VmHWM") - before
    if grown > GROWTH * os.path.getsize(path) + ALWAYS:
        problem = problem or f"{grown} bytes of memory for a file of {os.path.getsize(path)}"
    if time.monotonic() - start > SECONDS:
        problem = problem or f"{time.monotonic() - start:.0f} seconds"
    return outcome, problem


def run_batch(seed, first, count, folder, keep):
    """Read files in this process; called in a child of its own. Writes ``outcomes.json``."""
    torch.set_num_threads(1)
    model, whole, outcomes = Network(), whole_files(), Counter()
    path, reading, seen = folder / "file", [False], []

    def watch(event, args):
        if reading[0] and (event in FORBIDDEN_EVENTS or (event == "open" and args[2] & os.O_WRONLY)):
            seen.append(f"{event} {args}"[:200])

    def expire(*_):
        raise TimeoutError

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, expire)
    for number in range(first, first + count):
        path.write_bytes(make(seed, number, whole))
        (folder / "number").write_text(str(number))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory starts anew
        signal.alarm(SECONDS)
        reading[0] = True
        outcome, problem = read(path, model)
        reading[0] = False
        signal.alarm(0)
        problem = problem or ("it does what no reading does: " + "; ".join(seen) if seen else None)
        seen.clear()
        outcomes[outcome] += 1
        if problem:
            outcomes["finding"] += 1
            keep(number, path.read_bytes(), problem)
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


def fuzz(seed, first, count, findings):
    """Read files in a child process.

    Args:
        seed, first, count: the files with these numbers are made from the seed.
        findings: a folder for files that are findings, each with a text of the same name.

    Returns:
        Counter: how often each outcome was.
    """

    def keep(number, content, problem):
        findings.mkdir(parents=True, exist_ok=True)
        (findings / f"{seed}_{number}").write_bytes(content)
        (findings / f"{seed}_{number}.txt").write_text(problem)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            try:
                run_batch(seed, first, count, folder, keep)
            except BaseException:
                (folder / "file").write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        deadline, status = time.monotonic() + SECONDS * 3 + count, None
        while status is None and time.monotonic() < deadline:
            pid, code = os.waitpid(child, os.WNOHANG)
            status = code if pid else None
            time.sleep(0.02)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if status == 0:
            return Counter(json.loads((folder / "outcomes.json").read_text()))
        number = (folder / "number").read_text() if (folder / "number").exists() else "none"
        content = (folder / "file").read_bytes() if (folder / "file").exists() else b""
        keep(number, content, f"the process hung or died, status {status}")
        return Counter(finding=1)


def main():
    parser = argparse.ArgumentParser(description="Reads random and damaged files of weights.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz_findings"), help="folder for files that are findings"
    )
    args = parser.parse_args()
    end, first, outcomes = time.monotonic() + 60 * args.minutes, 0, Counter()
    while time.monotonic() < end:
        outcomes += fuzz(args.seed, first, BATCH, args.findings)
        first += BATCH
        print(f"seed {args.seed}: {first} files: {dict(outcomes)}", flush=True)
    return 1 if outcomes["finding"] else 0


if __name__ == "__main__":
    sys.exit(main())
