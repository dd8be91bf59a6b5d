"""Writes a configuration as YAML with the reason of each value above it."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from retina_plugin.core.text import one_line

_WIDTH = 112


class Suggestion(NamedTuple):
    """A key, its value, and the reason in a sentence."""

    key: str
    value: Any
    reason: str


def as_yaml(suggestions: Sequence[Suggestion], about: Sequence[str], base: str) -> str:
    """Write a configuration file.

    Args:
        suggestions: in the order of the file.
        about: sentences for its head.
        base: path of the configuration file that it builds on.
    """
    lines = [line for sentence in about for line in _comment(sentence, 0)]
    lines.append(f"_BASE_: {_value(str(Path(base).resolve()))}")
    root: dict[str, Any] = {}
    for suggestion in suggestions:
        *sections, name = suggestion.key.split(".")
        node = root
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = suggestion
    return "\n".join([*lines, *_lines(root, 0), ""])


def _lines(node: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, item in node.items():
        if isinstance(item, dict):
            yield f"{indent}{name}:"
            yield from _lines(item, depth + 1)
            continue
        yield from _comment(item.reason, depth)
        rows = item.value if isinstance(item.value, (list, tuple)) else []
        if len(rows) > 1 and all(isinstance(row, (list, tuple)) for row in rows):
            yield f"{indent}{name}:"
            yield from (f"{indent}  - {_value(row)}" for row in rows)
        else:
            yield f"{indent}{name}: {_value(item.value)}"


def _comment(sentence: str, depth: int) -> list[str]:
    indent = "  " * depth + "# "
    return textwrap.wrap(one_line(sentence), _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump([plain], default_flow_style=True, allow_unicode=True, width=float("inf")).strip()[1:-1]
