"""Words for messages, and what may be printed of foreign names."""

import difflib
import re
from collections.abc import Iterable, Sequence

# What a terminal obeys or hides instead of showing it: control characters, line separators, marks that turn the
# direction of writing, halves of surrogate pairs (bytes of file names that are not UTF-8).
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Replace characters that control a terminal by their escapes, such as ``\\x1b``; line ends and tabs stay."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(name: object) -> str:
    r""":func:`printable` for a name, whose line ends and tabs become ``\n`` and ``\t``."""
    return printable(str(name)).replace("\n", r"\n").replace("\t", r"\t")


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A sentence, with a space before it, that proposes the candidate closest to ``name``; empty if none is close."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" Did you mean {one_line(close[0])}?" if close else ""


def list_some(items: Sequence[object], limit: int, separator: str = ", ") -> str:
    """The first ``limit`` items, each in a line, and how many more there are."""
    shown = separator.join(map(one_line, items[:limit]))
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def describe_error(error: BaseException) -> str:
    """The text of an exception on one line, with its kind where the text alone does not tell."""
    text = " ".join(str(error).split())[:300]
    return (
        text if text and isinstance(error, (AssertionError, OSError, ValueError)) else f"{type(error).__name__}: {text}"
    )
