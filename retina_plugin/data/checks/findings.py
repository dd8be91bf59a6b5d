"""Kinds of problems, and what was found in a data set."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

# An error stops training or evaluation, or makes either of them wrong. A warning is about something that is left out or
# is probably a mistake. A note is good to know.
ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")

Entry = dict[str, Any]  # an image, an annotation or a category of a COCO file


class Kind(NamedTuple):
    """A kind of problem. ``name`` is stable, ``text`` is what happens if it stays and what to do.

    ``is_advice`` is for what is usual in good data sets: it counts once, in however many places it is.
    """

    name: str
    severity: str
    text: str
    is_advice: bool = False


KINDS: dict[str, Kind] = {}  # by name


def _declare(severity: str, declaration: str, *, is_advice: bool = False) -> Kind:
    name, _, text = " ".join(declaration.split()).partition(": ")
    if name in KINDS:
        raise ValueError(f"there are two kinds {name}")
    KINDS[name] = Kind(name, severity, text, is_advice)
    return KINDS[name]


# Each declares a kind by its line in reports: "name: text".
error_kind, warning_kind, note_kind = (partial(_declare, severity) for severity in SEVERITIES)


class Finding(NamedTuple):
    """One problem in one place. The entries are those of the data set's JSON."""

    kind: Kind
    detail: str
    image: Entry | None = None
    annotation: Entry | None = None
    category: Entry | None = None

    @property
    def entry(self) -> Entry:
        """The entry that is wrong; empty if the finding is about the data set."""
        return next((entry for entry in (self.annotation, self.category, self.image) if entry is not None), {})

    def place(self) -> tuple[Any, Any, Any, Any]:
        """File name, image id, annotation id and category id; None for those that do not apply."""
        image, annotation, category = self.image or {}, self.annotation or {}, self.category or {}
        image_id = image.get("id", annotation.get("image_id"))
        category_id = category.get("id", annotation.get("category_id"))
        return image.get("file_name"), image_id, annotation.get("id"), category_id


class Findings:
    """The findings of a data set."""

    def __init__(self) -> None:
        self._by_kind: dict[Kind, list[Finding]] = {}
        self._advice: dict[Kind, str] = {}

    def add(self, kind: Kind, detail: str, *place: Entry | None) -> None:
        """Add a finding; ``place`` is its image, annotation and category, as far as they apply."""
        self._by_kind.setdefault(kind, []).append(Finding(kind, detail, *place))

    def advise(self, kind: Kind, advice: str) -> None:
        """Add advice for this data set to the text of a kind."""
        self._advice[kind] = advice

    def explanation(self, kind: Kind) -> str:
        """What happens if problems of a kind stay, and what to do in this data set."""
        return f"{kind.text} {self._advice.get(kind, '')}".rstrip()

    def by_kind(self) -> dict[Kind, list[Finding]]:
        """Findings by kind: errors first, and within a severity in the order of the checks."""
        kinds = sorted(self._by_kind, key=lambda kind: SEVERITIES.index(kind.severity))
        return {kind: self._by_kind[kind] for kind in kinds}

    def count(self, severity: str) -> int:
        """Number of findings of a severity; advice counts once."""
        of_severity = {kind: found for kind, found in self._by_kind.items() if kind.severity == severity}
        return sum(1 if kind.is_advice else len(found) for kind, found in of_severity.items())

    def __iter__(self) -> Iterator[Finding]:
        return (finding for found in self.by_kind().values() for finding in found)

    def __len__(self) -> int:
        return sum(map(len, self._by_kind.values()))


class CannotCheck(Exception):
    """A problem after which nothing else can be checked."""

    def __init__(self, kind: Kind, detail: str):
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
