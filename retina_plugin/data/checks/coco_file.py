"""Reads a COCO file; an error says what is wrong with it and where."""

import json
import re
from typing import Any

from detectron2.utils.file_io import PathManager

from retina_plugin.core.errors import FileError
from retina_plugin.core.files import identify_file, refuse_special_file
from retina_plugin.data.checks.findings import CannotCheck, Finding, Findings, error_kind, note_kind, warning_kind
from retina_plugin.data.checks.repair import Editor, repairs

FILE_MISSING = error_kind("json-missing: There is nothing to train on. Correct the path, or put the file there.")
NOT_JSON = error_kind("json-invalid: Detectron2 cannot load it. Write the file again with a JSON library.")
TRUNCATED = error_kind("""json-truncated: Detectron2 cannot load it: its end is missing. Copy, download or export it
    again.""")
BOM = error_kind("json-bom: pycocotools cannot load it: it begins with a byte-order mark. Save it without. --fix does.")


@repairs(BOM)
def _write_without_mark(editor: Editor, finding: Finding) -> str:
    return "written without"


NAN = warning_kind("""json-nan: NaN and Infinity are not JSON: programs other than Python refuse the file. Write null,
    or leave the entry out.""")
NOT_COCO = error_kind("""json-not-coco: Detectron2 cannot load it, or finds nothing in it. A COCO file is an object with
    the lists images, annotations and categories.""")
NO_ANNOTATIONS = warning_kind("""annotations-missing: Detectron2 can predict on the set, but neither train on it nor
    compute metrics. Nothing to do for the images of a test; for training, export the annotations as well.""")

NO_INFO = note_kind("""info-missing: Older versions of pycocotools stop with a KeyError when they read results; this
    plugin's evaluation does not. Add "info": {}. --fix does.""")


@repairs(NO_INFO)
def _add_info(editor: Editor, finding: Finding) -> str:
    editor.data.coco["info"] = {}
    return "empty info added"


_OTHER_KINDS = {b"PK\x03\x04": "a zip archive: unpack it", b"<": "a web page or XML"}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
_NUMBER_GOES_ON = re.compile(r"-|\.|[eE][-+]?|\.\d+[eE][-+]?")
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


def read_coco(path: str, found: Findings) -> dict[str, Any]:
    """Read a COCO file as Detectron2 would; ``found`` gets what is wrong but can be read.

    Returns:
        A dict with the lists ``images``, ``categories`` and, except in a test set, ``annotations``, whose items may be
        of any type.

    Raises:
        CannotCheck: the file cannot be read, or is not a COCO file.
    """
    try:
        refuse_special_file(path)
        with PathManager.open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise CannotCheck(FILE_MISSING, f"no file {path}") from None
    except FileError as error:
        raise CannotCheck(NOT_JSON, str(error)) from None
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
        raise CannotCheck(NOT_COCO, f"{_type_name(coco)}, not an object")
    for section in ("images", "categories", "annotations"):
        if section not in coco:
            near = [key for key in coco if key.lower().rstrip("s") == section.rstrip("s")]
            if section == "annotations" and not near and coco["images"]:
                found.add(NO_ANNOTATIONS, "no annotations")
                continue
            raise CannotCheck(NOT_COCO, f"no {section}" + (f", but {near[0]}" if near else ""))
        if not isinstance(coco[section], list):
            raise CannotCheck(NOT_COCO, f"{section} is {_type_name(coco[section])}, not a list")
    if "info" not in coco:
        found.add(NO_INFO, "no info")
    return coco


def _decode(data: bytes) -> str:
    if not data.strip(b"\0 \t\r\n"):
        raise CannotCheck(TRUNCATED, f"empty: {len(data)} bytes, all of them blank" if data else "empty: 0 bytes")
    other = identify_file(data[:64]) or next((kind for b, kind in _OTHER_KINDS.items() if data.startswith(b)), None)
    if other:
        raise CannotCheck(NOT_JSON, f"it is {other}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise CannotCheck(TRUNCATED, f"it ends at byte {len(data)}, within a letter") from None
        raise CannotCheck(NOT_JSON, f"not UTF-8 at byte {error.start}") from None


def _parse(text: str, data: bytes) -> tuple[Any, int]:
    """The parsed text and its number of NaN and Infinity."""
    tokens = []

    def constant(token: str) -> float:
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


def _byte(text: str, position: int) -> int:
    return len(text[:position].encode())


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
