"""Which format a file of weights has, by its content: names are often wrong."""

import re
import zipfile

ZIP, LEGACY, PICKLE, SAFETENSORS = "torch.save", "torch.save before 1.6", "pickle", "safetensors"

_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")  # the number 0x1950a86a20f9469cfc6c, pickled
_NOT_WEIGHTS = {
    b"version https://git-lfs": "this is a git-lfs pointer, not the file itself. Run `git lfs pull` where it came from",
    b"\x1f\x8b": "this is a gzip archive. Unpack it, and name the file in it",
    b"BZh": "this is a bzip2 archive. Unpack it, and name the file in it",
    b"\xfd7zXZ\x00": "this is an xz archive. Unpack it, and name the file in it",
    b"\x89HDF": "this is an HDF5 file (Keras), whose weights no RetinaNet of Detectron2 has the names of",
    b"\x93NUMPY": "this is a single numpy array, not a checkpoint",
}
_HTML = re.compile(rb"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)
_SAFETENSORS_HEADER = 100_000_000  # bytes; what the format allows


class Unreadable(Exception):
    """A file that weights cannot be read from. The message says what it is, and what to do."""


def format_of(path):
    """The format of a file: :data:`ZIP`, :data:`LEGACY`, :data:`SAFETENSORS`, or :data:`PICKLE` where it may be one.

    Raises:
        Unreadable: none of them.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise Unreadable("this file is empty (0 bytes). Get it again")
    if not head.strip(b"\x00"):
        raise Unreadable("this file begins with zeros: it was not written to its end. Get it again")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return ZIP
    if _LEGACY_MAGIC in head[:32]:
        return LEGACY
    for beginning, what in _NOT_WEIGHTS.items():
        if head.startswith(beginning):
            raise Unreadable(what)
    if head[257:262] == b"ustar":
        raise Unreadable("this is a tar archive. Unpack it, and name the file in it")
    if _HTML.match(head):
        raise Unreadable(
            "this is a web page, not weights: what was downloaded is a login or an error page. Remove it, open the "
            "address in a browser, and get the file itself"
        )
    # A length of 8 bytes, then JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER:
        return SAFETENSORS
    if head.startswith(b"\x80") or not _is_text(head):
        return PICKLE
    return PICKLE if _begins_as_old_pickle(head) else _refuse_text()


def _check_zip(path):
    if not zipfile.is_zipfile(path):
        raise Unreadable("this file is truncated: the end of its archive is missing. Get it again")
    try:
        with zipfile.ZipFile(path) as archive:
            files = [name.rpartition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise Unreadable(f"this file is a damaged archive ({error}). Get it again") from error
    if "constants.pkl" in files:
        raise Unreadable("this is a TorchScript program, not weights. Save the state_dict() of its model")
    if "data.pkl" not in files:
        raise Unreadable("this is a zip archive that torch.save did not write. Unpack it, and name the file in it")


def _is_text(head):
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)


def _begins_as_old_pickle(head):
    # Protocol 0 is text: marks, and a container, a global (its module and its name, a line each) or a value.
    name = rb"[A-Za-z_][\w.]*\n"
    return re.match(rb"\(?[dlt](p\d+)?\n|\(*[ci]" + 2 * name + rb"|\(+[SVIFLN]", head) is not None


def _refuse_text():
    raise Unreadable("this is a text file, not weights. Name a .pth, .pkl or .safetensors file")
