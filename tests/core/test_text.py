"""What a terminal would obey is shown as an escape, and all that people write stays as it is."""

import io
import sys
import unicodedata

import pytest

from retina_plugin.core.errors import CheckpointError, ConfigError, format_error
from retina_plugin.core.terminal import printable_output
from retina_plugin.core.text import list_some, one_line, printable

# Clear the screen, set the title, C1's CSI, turn the direction of writing, return to the start of the line, and bytes
# of a file name that are not UTF-8.
ATTACKS = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "safe\rERROR",
    "\x08\x7f",
    "\udcff",
]
NAMES = ["é", "日本.jpg", "شارع", "नमस्ते", "👩‍👩‍👧", "a b\u00a0c", "naïve ½ ∑", "İstanbul"]


@pytest.mark.parametrize("text", ATTACKS)
def test_characters_that_control_a_terminal_are_escaped(text):
    shown = printable(f"a{text}b\n\tc")
    assert shown.startswith("a") and shown.endswith("b\n\tc") and "\\" in shown
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u2028\u2029")


def test_every_control_character_and_no_other():
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        controls = unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in (
            *("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"),
        )
        controls = (controls and c not in "\n\t") or c in "\u061c\u200e\u200f"
        assert (printable(c) != c) == controls, hex(code)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_script_stay(name):
    assert printable(name) == one_line(name) == name


def test_line_ends_of_a_name_are_escaped_where_names_are_put_into_messages():
    forged = "cat\n[12/01 00:00:00 d2]: all is well\r"
    assert one_line(forged) == r"cat\n[12/01 00:00:00 d2]: all is well\r"
    assert list_some([forged, 3, "b"], 2) == rf"{one_line(forged)}, 3 and 1 more"


def test_error_lines():
    assert format_error(ConfigError(["no \x1b[2Jkey", "b"])) == "error: no \\x1b[2Jkey\nerror: b"
    assert format_error(CheckpointError("two\n  lines\x9b")) == "error: two\n  lines\\x9b"
    assert format_error(FileNotFoundError(2, "No such file", "\x1b[31mred")) == (
        "error: [Errno 2] No such file: '\\x1b[31mred'"
    )


@pytest.mark.parametrize("encoding, shown", [("utf-8", "日\\x1b[0m"), ("ascii", "\\u65e5\\x1b[0m")])
def test_what_is_printed_meanwhile(encoding, shown, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    streams = sys.stdout, sys.stderr
    with printable_output():
        print("日\x1b[0m", flush=True)
        print("日\x1b[0m", flush=True, file=sys.stderr)
    assert (sys.stdout, sys.stderr) == streams
    assert [stream.buffer.getvalue() for stream in streams] == [f"{shown}\n".encode()] * 2
