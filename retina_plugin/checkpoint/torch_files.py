"""Reads what ``torch.save`` wrote, now and before version 1.6, and compares it with the checksums of the file."""

import io
import os
import struct
import sys
import zipfile
import zlib
from typing import Any

import torch

from retina_plugin.checkpoint import safe_pickle
from retina_plugin.checkpoint.formats import Unreadable
from retina_plugin.checkpoint.stand_ins import Budget, UnsafePickle
from retina_plugin.checkpoint.torch_stand_ins import Storage, StorageType

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of an entry of a zip archive: signature, lengths of its name and its extras


def load_zip(path: str | os.PathLike) -> Any:
    """Read a zip archive of ``torch.save``; see :func:`~retina_plugin.checkpoint.safe_pickle.load`.

    Raises:
        Unreadable: an entry is missing, compressed, or other bytes than were written.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        return _Archive(file, archive).load()


def load_legacy(path: str | os.PathLike) -> Any:
    """Read a file that ``torch.save`` wrote before version 1.6: five pickles, and then the bytes of the storages."""
    with open(path, "rb") as file:
        storages = _LegacyStorages(os.fstat(file.fileno()).st_size)
        for _ in range(3):  # what it is, the version of the format, and the kind of machine
            safe_pickle.load(file, budget=storages.budget)
        value = safe_pickle.load(file, budget=storages.budget, persistent_load=storages.declare)
        storages.read(file, safe_pickle.load(file, budget=storages.budget))
        return value


class _Archive:
    """The entries of an archive: a pickle, and storages that are read where it refers to them."""

    def __init__(self, file: io.BufferedReader, archive: zipfile.ZipFile):
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._budget = Budget(self._size)
        self._storages: dict[str, torch.Tensor] = {}
        # torch.save can be told to write no checksums: all are zero then.
        self._has_checksums = any(entry.CRC for entry in self._entries.values())
        program = next(name for name in self._entries if name.rpartition("/")[2] == "data.pkl")
        self._folder = program.removesuffix("data.pkl")
        order = self._read("byteorder").numpy().tobytes() if f"{self._folder}byteorder" in self._entries else b"little"
        self._is_native = order.decode() == sys.byteorder

    def load(self) -> Any:
        program = io.BytesIO(self._read("data.pkl").numpy().tobytes())
        return safe_pickle.load(program, budget=self._budget, persistent_load=self._storage)

    def _storage(self, persistent_id: Any) -> Storage:
        kind, key, count, _ = _describe(persistent_id)
        if key not in self._storages:
            self._storages[key] = _in_native_order(self._read(f"data/{key}"), kind.dtype, self._is_native)
        data = self._storages[key]
        if len(data) != count * kind.dtype.itemsize:
            raise Unreadable(f"this file is damaged: one of its storages has {len(data)} bytes. Get it again")
        return Storage(data, kind.dtype)

    def _read(self, name: str) -> torch.Tensor:
        """The bytes of an entry."""
        entry = self._entries.get(self._folder + name)
        name = name if name.isprintable() and len(name) < 80 else ascii(name[:80])
        if entry is None:
            raise Unreadable(f"this file is damaged: its entry {name} is missing. Get it again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Unreadable(
                "the entries of this zip archive are compressed, which torch.save never does: unpack it, and zip its "
                "folder without compression (zip -0 -r)"
            )
        self._file.seek(entry.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        start = self._file.seek(name_length + extra_length, os.SEEK_CUR)
        if signature != b"PK\x03\x04" or start + entry.file_size > self._size:
            raise Unreadable(f"this file is damaged: its entry {name} is not where it should be. Get it again")
        self._budget.spend_data(entry.file_size)
        data = _read_bytes(self._file, entry.file_size)
        if self._has_checksums and zlib.crc32(data.numpy().data) != entry.CRC:
            raise Unreadable(
                f"this file is damaged: the checksum of its entry {name} is not that of what was written. Get it again"
            )
        return data


class _LegacyStorages:
    """Storages that a pickle refers to before their bytes are read."""

    def __init__(self, file_size: int):
        self.budget = Budget(file_size)
        self._left = file_size
        self._storages: dict[str, Storage] = {}

    def declare(self, persistent_id: Any) -> Any:
        if type(persistent_id) is tuple and len(persistent_id) == 4 and persistent_id[0] == "module":
            return persistent_id[1]  # the class of a module, with its source
        kind, key, count, view = _describe(persistent_id)
        size = kind.dtype.itemsize
        if key not in self._storages:
            self._left -= count * size
            if self._left < 0:
                raise EOFError("it ends too early")
            self._storages[key] = Storage(torch.empty(count * size, dtype=torch.uint8), kind.dtype)
        if view is None:
            return self._storages[key]
        _, start, length = view
        if type(start) is not int or type(length) is not int or not 0 <= start <= start + length <= count:
            raise UnsafePickle("it has a part of a storage that is larger than the storage")
        return Storage(self._storages[key].data[start * size : (start + length) * size], kind.dtype)

    def read(self, file: io.BufferedReader, keys: Any) -> None:
        """Read the bytes of all storages, in the order of their keys."""
        if type(keys) is not list or any(type(key) is not str for key in keys) or {*keys} != {*self._storages}:
            raise UnsafePickle("its storages are not those of its tensors")
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count * storage.dtype.itemsize != len(storage.data):
                raise UnsafePickle(f"its storage {key[:20]!a} has another size than its tensors")
            data = _read_bytes(file, len(storage.data))
            storage.data.copy_(_in_native_order(data, storage.dtype, sys.byteorder == "little"))


def _describe(persistent_id: Any) -> tuple[StorageType, str, int, Any]:
    """The type, key, number of elements and view of a storage."""
    marker, *rest = persistent_id if type(persistent_id) is tuple and persistent_id else (None,)
    if marker != "storage" or len(rest) not in (4, 5):
        raise UnsafePickle("it refers to something else than a storage")
    kind, key, _, count, *view = rest
    if not isinstance(kind, StorageType) or type(key) is not str or type(count) is not int or count < 0:
        raise UnsafePickle("it refers to a storage without a type, a name or a size")
    return kind, key, count, tuple(view[0]) if view and view[0] is not None else None


def _read_bytes(file: io.BufferedReader, size: int) -> torch.Tensor:
    data = torch.empty(size, dtype=torch.uint8)
    if size and file.readinto(data.numpy().data) != size:
        raise EOFError("it ends too early")
    return data


def _in_native_order(data: torch.Tensor, dtype: torch.dtype, is_native: bool) -> torch.Tensor:
    width = dtype.itemsize // (2 if dtype.is_complex else 1)
    return data if is_native or width == 1 else data.view(-1, width).flip(1).flatten()
