"""Prints through a filter: nothing that a file, class or tensor is named controls the terminal."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from retina_plugin.core.text import printable


class _PrintableStream:
    """A text stream that escapes what controls a terminal, and characters that its encoding lacks."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Escape control characters in all that is printed meanwhile, to standard output and standard error."""
    output, errors = _PrintableStream(sys.stdout), _PrintableStream(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield
