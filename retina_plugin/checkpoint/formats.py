"""Identifies the format of a file of weights by its content: names are often wrong."""

import os
import re
import zipfile

from retina_plugin.core.files import identify_file

ZIP, LEGACY, PICKLE, SAFETENSORS = "torch.save", "torch.save before 1.6", "pickle", "safetensors"

_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")  # the number 0x1950a86a20f9469cfc6c, pickled
_NOT_WEIGHTS = {
    b"\x89HDF": "an HDF5 file (Keras): the names of its weights fit no RetinaNet of Detectron2",
    b"\x93NUMPY": "a single numpy array: save the weights as {'model': state_dict}",
}
_WEB_PAGE = "open the address in a browser, as this is often a login or an error page, and get the file itself"
_SAFETENSORS_HEADER = 100_000_000  # bytes; the largest header that the format allows


class Unreadable(Exception):
    """A file without readable weights. The message says what the file is, and what to do."""


def format_of(path: str | os.PathLike) -> str:
    """Return :data:`ZIP`, :data:`LEGACY`, :data:`SAFETENSORS`, or :data:`PICKLE` if the file may be one.

    Raises:
        Unreadable: the file has another format.
    """
    with open(path, "rb") as file:
        # What the kernel offers as files has no size, and reading it may wait.
        head = file.read(512) if os.fstat(file.fileno()).st_size else b""
    kind = identify_file(head) or next((kind for start, kind in _NOT_WEIGHTS.items() if head.startswith(start)), None)
    if head[257:262] == b"ustar":
        kind = "a tar archive: unpack it"
    if kind is not None:
        what, _, remedy = kind.partition(": ")
        raise Unreadable(f"this is {what}, not weights: {remedy or (_WEB_PAGE if 'page' in what else 'get it again')}")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return ZIP
    if _LEGACY_MAGIC in head[:32]:
        return LEGACY
    # A length of 8 bytes, then JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER:
        return SAFETENSORS
    if _is_text(head) and not _begins_as_old_pickle(head):
        raise Unreadable("this is a text file, not weights: name a .pth, .pkl or .safetensors file")
    return PICKLE


def _check_zip(path: str | os.PathLike) -> None:
    try:
        if not zipfile.is_zipfile(path):
            raise Unreadable("this file is truncated: the end of its archive is missing. Get it again")
        with zipfile.ZipFile(path) as archive:
            files = [name.rpartition("/")[2] for name in archive.namelist()]
    except (OSError, Unreadable):
        raise
    except Exception as error:  # also names that are no text, and flags that nobody knows
        raise Unreadable(f"this file is a damaged archive ({error}). Get it again") from error
    if "constants.pkl" in files:
        raise Unreadable("this is a TorchScript program, not weights: save the state_dict() of its model")
    if "data.pkl" not in files:
        raise Unreadable("this is a zip archive that torch.save did not write: unpack it, and name the file in it")


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)


def _begins_as_old_pickle(head: bytes) -> bool:
    # Protocol 0 is text: marks, and a container, a global (its module and its name, a line each) or a value.
    name = rb"[A-Za-z_][\w.]*\n"
    return re.match(rb"\(?[dlt](p\d+)?\n|\(*[ci]" + 2 * name + rb"|\(+[SVIFLN]", head) is not None
