"""What checks find: kinds, each with what comes of it and what to do, and findings of these kinds."""

from typing import NamedTuple

# Training or evaluation stops or learns from something that is wrong; something is left out or probably not meant;
# nothing is wrong, but good to know.
ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")


class Kind(NamedTuple):
    """A kind of problem. ``name`` is stable, ``harm`` says what happens if it stays, ``remedy`` what to do."""

    name: str
    severity: str
    harm: str
    remedy: str


KINDS = {}  # name -> Kind, in the order in which they are reported


def declare(name, severity, harm, remedy):
    """Add a kind to :data:`KINDS` and return it. Each module of checks declares the kinds that it finds."""
    if name in KINDS:
        raise ValueError(f"there are two kinds {name}")
    KINDS[name] = Kind(name, severity, harm, remedy)
    return KINDS[name]


class Finding(NamedTuple):
    """One problem in one place. The entries are the ones of the data set's JSON, or None."""

    kind: Kind
    detail: str
    image: dict = None
    annotation: dict = None
    category: dict = None

    def place(self):
        """File name, image id, annotation id and category id; None each where there is none."""
        image, annotation, category = (x if isinstance(x, dict) else {} for x in self[2:])
        image_id = image.get("id", annotation.get("image_id"))
        category_id = category.get("id", annotation.get("category_id"))
        return image.get("file_name"), image_id, annotation.get("id"), category_id


class Findings:
    """Everything that was found, in order.

    Attributes:
        complete: False if a problem kept the rest of the checks from being made.
    """

    def __init__(self):
        self._by_kind = {}
        self._advice = {}
        self.complete = True

    def add(self, kind, detail, image=None, annotation=None, category=None):
        self._by_kind.setdefault(kind, []).append(Finding(kind, detail, image, annotation, category))

    def advise(self, kind, advice):
        """Say what to do about a kind in this very data set, after its general remedy."""
        self._advice[kind] = advice

    def remedy(self, kind):
        return " ".join(filter(None, [kind.remedy, self._advice.get(kind)]))

    def by_kind(self):
        """dict of kinds to lists of findings, errors first."""
        order = {kind: (SEVERITIES.index(kind.severity), i) for i, kind in enumerate(KINDS.values())}
        return {kind: self._by_kind[kind] for kind in sorted(self._by_kind, key=order.get)}

    def of(self, kind):
        return self._by_kind.get(kind, [])

    def count(self, severity):
        return sum(len(found) for kind, found in self._by_kind.items() if kind.severity == severity)

    def __iter__(self):
        return (finding for found in self.by_kind().values() for finding in found)

    def __len__(self):
        return sum(map(len, self._by_kind.values()))


class CannotCheck(Exception):
    """A problem after which nothing else can be checked."""

    def __init__(self, kind, detail):
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
