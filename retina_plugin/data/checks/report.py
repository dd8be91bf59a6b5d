"""What was found, as a table for people and as a file of all findings for programs."""

import csv
import io
import json
import textwrap

from tabulate import tabulate

from retina_plugin.core.files import atomic_write

from .findings import ERROR, NOTE, WARNING

_COLUMNS = ("severity", "kind", "file_name", "image_id", "annotation_id", "category_id", "detail")
_WIDTH = 120


def as_text(found, examples=3):
    """A table of the kinds that were found with the first places of each, and a line of what to do for each kind."""
    rows, remedies = [], []
    for kind, findings in found.by_kind().items():
        for i, finding in enumerate(findings[:examples]):
            head = (kind.severity, kind.name, len(findings)) if i == 0 else ("", "", "")
            rows.append((*head, textwrap.shorten(_where(finding), 150)))
        remedies.append(f"{kind.name}: {kind.harm} {found.remedy(kind)}")
    if not rows:
        return ""
    table = tabulate(rows, ("severity", "kind", "count", "where"), "plain", disable_numparse=True)
    return "\n\n".join([table, *(textwrap.fill(line, _WIDTH, subsequent_indent="    ") for line in remedies)])


def summary(found):
    """A line with the numbers of errors, warnings and notes."""
    if not len(found):
        return "Nothing was found."
    counts = ((severity, found.count(severity)) for severity in (ERROR, WARNING, NOTE))
    return ", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts if number) + "."


def changes_as_text(changes):
    """A table of what :func:`repair_until_clean` changed."""
    rows = [(kind.name, number, done) for (kind, done), number in changes.items()]
    return tabulate(rows, ("kind", "count", "done"), "plain") if rows else "Nothing had to be changed."


def write_report(found, path):
    """Write every finding to a file, CSV or JSON by its name.

    Raises:
        OSError: it cannot be written.
        ValueError: its name ends in neither.
    """
    check_report_name(path)
    rows = [(f.kind.severity, f.kind.name, *f.place(), f.detail) for f in found]
    if path.suffix == ".json":
        text = json.dumps([dict(zip(_COLUMNS, row)) for row in rows], indent=1, default=str)
    else:
        text = io.StringIO()
        csv.writer(text).writerows([_COLUMNS, *rows])
        text = text.getvalue()
    atomic_write(str(path), lambda file: file.write(text.encode()))


def check_report_name(path):
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"--report {path}: its name must end in .csv or .json")


def _where(finding):
    file_name, image_id, annotation_id, _ = finding.place()
    image = [f"image {image_id!r}"] if image_id is not None else []
    annotation = [f"annotation {annotation_id!r}"] if annotation_id is not None else []
    place = ", ".join([*([str(file_name)] if file_name is not None else []), *image, *annotation])
    return f"{place}: {finding.detail}" if place else finding.detail
