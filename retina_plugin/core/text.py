"""Words for error messages."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A sentence, with a space before it, that proposes the candidate closest to ``name``; empty if none is close."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def list_some(items: Sequence[object], limit: int, separator: str = ", ") -> str:
    """The first ``limit`` items, and how many more there are."""
    shown = separator.join(map(str, items[:limit]))
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def describe_error(error: BaseException) -> str:
    """The text of an exception on one line, with its kind where the text alone does not tell."""
    text = " ".join(str(error).split())[:300]
    return (
        text if text and isinstance(error, (AssertionError, OSError, ValueError)) else f"{type(error).__name__}: {text}"
    )
