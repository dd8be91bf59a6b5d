"""Writes findings as a table for people and as a file for programs."""

import csv
import io
import json
import textwrap
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from retina_plugin.core.files import atomic_write_text
from retina_plugin.core.text import one_line
from retina_plugin.data.checks.findings import SEVERITIES, Finding, Findings
from retina_plugin.data.checks.run import Repaired

_COLUMNS = ("severity", "kind", "file_name", "image_id", "annotation_id", "category_id", "detail")
_WIDTH = 120


def as_text(found: Findings, examples: int = 3) -> str:
    """A table of the kinds that were found, with the first places of each, and a line of what to do for each kind."""
    rows, remedies = [], []
    for kind, findings in found.by_kind().items():
        for i, finding in enumerate(findings[:examples]):
            number = f"1 in {len(findings)} places" if kind.is_advice and len(findings) > 1 else len(findings)
            head = (kind.severity, kind.name, number) if i == 0 else ("", "", "")
            rows.append((*head, textwrap.shorten(one_line(_where(finding)), 150)))
        remedies.append(f"{kind.name}: {found.explanation(kind)}")
    if not rows:
        return ""
    table = tabulate(rows, ("severity", "kind", "count", "where"), "plain", disable_numparse=True)
    return "\n\n".join([table, *(textwrap.fill(line, _WIDTH, subsequent_indent="    ") for line in remedies)])


def summary(found: Findings) -> str:
    """A line with the numbers of errors, warnings and notes."""
    counts = ((severity, found.count(severity)) for severity in SEVERITIES)
    text = ", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts if number)
    return f"{text}." if text else "Nothing was found."


def changes_as_text(repaired: Repaired) -> str:
    """A table of the changes of ``repair_until_clean``, and how much of the data set is left."""
    rows = [(kind.name, number, done) for (kind, done), number in repaired.changes.items()]
    table = tabulate(rows, ("kind", "count", "done"), "plain") if rows else "Nothing had to be changed."
    left = ", ".join(f"{after} of {before} {section}" for section, (after, before) in repaired.sizes.items())
    return f"{table}\n\n{left} left."


def drops_as_text(repaired: Repaired) -> str:
    """A line that says how many of what the repair drops, and why."""
    sizes = repaired.sizes.items()
    what = [f"{before - after} of {before} {section}" for section, (after, before) in sizes if after < before]
    reasons = Counter[str]()
    for (kind, done), number in repaired.changes.items():
        if done.endswith("dropped"):
            reasons[kind.name] += number
    return f"{' and '.join(what)} ({', '.join(f'{name}: {number}' for name, number in reasons.items())})"


def write_report(found: Findings, path: Path) -> None:
    """Write every finding to a .csv or .json file.

    Raises:
        OSError: the file cannot be written.
        ValueError: its name has another suffix.
    """
    check_report_name(path)
    rows = [(f.kind.severity, f.kind.name, *f.place(), f.detail) for f in found]
    text = io.StringIO()
    if path.suffix == ".json":
        json.dump([dict(zip(_COLUMNS, row)) for row in rows], text, indent=1, default=str)
    else:
        csv.writer(text).writerows([_COLUMNS, *rows])
    atomic_write_text(path, text.getvalue())


def check_report_name(path: Path) -> None:
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"--report {path}: its name must end in .csv or .json")


def _where(finding: Finding) -> str:
    file_name, image_id, annotation_id, _ = finding.place()
    image = None if image_id is None else f"image {image_id!r}"
    annotation = None if annotation_id is None else f"annotation {annotation_id!r}"
    place = ", ".join(str(part) for part in (file_name, image, annotation) if part is not None)
    return f"{place}: {finding.detail}" if place else finding.detail
