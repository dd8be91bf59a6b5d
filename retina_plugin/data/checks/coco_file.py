"""Reading a COCO file, with an error that says what is wrong with it and where."""

import json
import re

from detectron2.utils.file_io import PathManager

from .findings import ERROR, WARNING, CannotCheck, declare

FILE_MISSING = declare(
    "json-missing", ERROR, "There is nothing to train on.", "Correct the path, or put the file there."
)
NOT_JSON = declare("json-invalid", ERROR, "Detectron2 cannot load it.", "Write the file again with a JSON library.")
TRUNCATED = declare(
    "json-truncated", ERROR, "Detectron2 cannot load it.", "Copy, download or export it again: its end is missing."
)
BOM = declare(
    "json-bom",
    ERROR,
    "pycocotools cannot load it: it begins with a byte-order mark.",
    "Save it as UTF-8 without one. --fix does.",
)
NAN = declare(
    "json-nan",
    WARNING,
    "NaN and Infinity are no JSON: Python reads them, other programs refuse the file.",
    "Write null, or leave the entry out.",
)
NOT_COCO = declare(
    "json-not-coco",
    ERROR,
    "Detectron2 cannot load it.",
    "A COCO file is an object with the lists images, annotations and categories.",
)

_SECTIONS = ("images", "annotations", "categories")
_OTHERS = {
    b"version https://git-lfs": "a git-lfs pointer: run `git lfs pull` where it came from",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"<": "a web page or XML",
}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
_NUMBER_GOES_ON = re.compile(r"-|\.|[eE][-+]?|\.\d+[eE][-+]?")
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


def read_coco(path, found):
    """Read a COCO file as Detectron2 would.

    Args:
        path (str): of the file.
        found (Findings): gets what is wrong but can be read.

    Returns:
        dict: with lists ``images``, ``annotations`` and ``categories``, of whatever.

    Raises:
        CannotCheck: it cannot be read, or is something else.
    """
    try:
        with PathManager.open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise CannotCheck(FILE_MISSING, f"no file {path}") from None
    except OSError as error:
        raise CannotCheck(FILE_MISSING, f"{path} cannot be read: {error.strerror or error}") from None
    text = _decode(data)
    if text.startswith("\ufeff"):
        found.add(BOM, "byte 0")
        text = text[1:]
    coco, num_tokens = _parse(text, data)
    if num_tokens:
        first = next(match for match in _TOKEN.finditer(text) if match[1])
        line = text.count("\n", 0, first.start()) + 1
        found.add(NAN, f"{num_tokens} in all, the first ({first[1]}) at byte {_byte(text, first.start())}, line {line}")
    if not isinstance(coco, dict):
        raise CannotCheck(NOT_COCO, f"{_what(coco)}, not an object")
    for section in _SECTIONS:
        if section not in coco:
            near = [key for key in coco if key.lower().rstrip("s") == section.rstrip("s")]
            raise CannotCheck(NOT_COCO, f"no {section}" + (f", but {near[0]}" if near else ""))
        if not isinstance(coco[section], list):
            raise CannotCheck(NOT_COCO, f"{section} is {_what(coco[section])}, not a list")
    return coco


def _decode(data):
    if not data.strip(b"\0 \t\r\n"):
        raise CannotCheck(TRUNCATED, f"empty: {len(data)} bytes, all of them blank" if data else "empty: 0 bytes")
    for beginning, what in _OTHERS.items():
        if data.startswith(beginning):
            raise CannotCheck(NOT_JSON, f"it is {what}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise CannotCheck(TRUNCATED, f"it ends at byte {len(data)}, within a letter") from None
        raise CannotCheck(NOT_JSON, f"not UTF-8 at byte {error.start}") from None


def _parse(text, data):
    tokens = []

    def constant(token):
        tokens.append(token)
        return float(token)

    try:
        return json.loads(text, parse_constant=constant), len(tokens)
    except RecursionError:
        raise CannotCheck(NOT_JSON, "nested too deeply") from None
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        unfinished = any(literal.startswith(rest) for literal in _LITERALS) or _NUMBER_GOES_ON.fullmatch(rest)
        if unfinished or error.msg.startswith("Unterminated string"):
            raise CannotCheck(TRUNCATED, f"it ends at byte {len(data)}, line {text.count(chr(10)) + 1}") from None
        where = f"byte {_byte(text, error.pos)}, line {error.lineno}, column {error.colno}"
        raise CannotCheck(NOT_JSON, f"{error.msg} at {where}") from None


def _byte(text, position):
    return len(text[:position].encode())


def _what(value):
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
