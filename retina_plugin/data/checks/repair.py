"""What repairs share. A repair is declared beside its kind, and acts only if exactly one correction is possible."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from retina_plugin.data.checks.context import DataSet
from retina_plugin.data.checks.entries import as_id, is_finite, is_id, is_number
from retina_plugin.data.checks.findings import Entry, Finding, Kind
from retina_plugin.data.checks.image_files import ImageFile, ImageFiles

STRINGS_CONVERTED = "strings converted to numbers"
REFERENCES = {"image_id": "images", "category_id": "categories"}  # of annotations


def ids_in(entries: Iterable[Any]) -> set[Any]:
    """The valid ids of entries of a section, which may lack them."""
    return {entry["id"] for entry in entries if isinstance(entry, dict) and is_id(entry.get("id"))}


def by_number(ids: Iterable[Any]) -> dict[Any, Any]:
    """Ids by what they are as numbers, if they can be; without those of which two are one number."""
    counts = Counter(map(as_id, ids))
    return {as_id(identifier): identifier for identifier in ids if counts[as_id(identifier)] == 1}


class Editor:
    """A pass of repairs over a data set. Entries are looked up by the ids that they had before the pass."""

    def __init__(self, data: DataSet, files: ImageFiles | None):
        self.data = data
        self._files = files
        self._dropped: set[int] = set()  # id() of entries
        self._ids = {section: itertools.count(self._first_free_id(section)) for section in ("images", "annotations")}
        self.first_images, self.first_categories = (
            {entry["id"]: entry for entry in reversed(self.entries(section)) if is_id(entry.get("id"))}
            for section in ("images", "categories")
        )
        self.ids_by_number = {section: by_number(ids_in(self.entries(section))) for section in REFERENCES.values()}
        self.annotations_of: dict[Any, list[Entry]] = {}  # by image id
        for annotation in self.entries("annotations"):
            if is_id(annotation.get("image_id")):
                self.annotations_of.setdefault(annotation["image_id"], []).append(annotation)

    def entries(self, section: str) -> list[Entry]:
        return [entry for entry in self.data.coco.get(section, ()) if isinstance(entry, dict)]

    def _first_free_id(self, section: str) -> int:
        return int(max([0, *(entry["id"] for entry in self.entries(section) if is_finite(entry.get("id")))])) + 1

    def new_id(self, section: str) -> int:
        return next(self._ids[section])

    def file(self, image: Entry) -> ImageFile | None:
        """The file of an image; None if it cannot be used or was not read."""
        file = self._files.look([self.data.path(image)])[0] if self._files else None
        return None if file is None or file.problem else file

    @cached_property
    def some_file_is_good(self) -> bool:
        return any(self.file(image) for image in self.entries("images") if isinstance(image.get("file_name"), str))

    def drop(self, entry: Entry, what: str) -> str | None:
        """Remove an entry at the end of the pass."""
        if id(entry) in self._dropped:
            return None
        self._dropped.add(id(entry))
        return f"{what} dropped"

    def finish(self) -> int:
        """Remove what was dropped and the annotations of dropped images; return the number of these annotations."""
        coco = self.data.coco
        gone = {_id(image) for image in self.entries("images") if id(image) in self._dropped}
        for section in self.data.sections:
            coco[section] = [entry for entry in coco[section] if id(entry) not in self._dropped]
        if "annotations" not in coco:
            return 0
        gone -= {None, *map(_id, coco["images"])}
        kept = [annotation for annotation in coco["annotations"] if _id(annotation, "image_id") not in gone]
        number = len(coco["annotations"]) - len(kept)
        coco["annotations"] = kept
        return number


def _id(entry: object, field: str = "id") -> Any:
    value = entry.get(field) if isinstance(entry, dict) else None
    return value if is_id(value) else None


# Repairs one finding and says what was done; None if nothing was.
Repair = Callable[[Editor, Finding], str | None]
REPAIRS: dict[Kind, Repair] = {}


def repairs(*kinds: Kind) -> Callable[[Repair], Repair]:
    """Register the repair of kinds."""

    def register(repair: Repair) -> Repair:
        REPAIRS.update(dict.fromkeys(kinds, repair))
        return repair

    return register


def drop_image(editor: Editor, finding: Finding) -> str | None:
    # If no file can be used, the folder is probably the wrong one.
    return editor.drop(finding.entry, "image") if editor.some_file_is_good else None


def drop_annotation(editor: Editor, finding: Finding) -> str | None:
    return editor.drop(finding.entry, "annotation")


def new_annotation_id(editor: Editor, finding: Finding) -> str | None:
    finding.entry["id"] = editor.new_id("annotations")
    return "new id given"


def set_box(annotation: Entry, box: list[float]) -> None:
    """Replace the box of an annotation, and its area if this was that of the old box or exceeds that of the new one."""
    area: Any = annotation.get("area")
    _, _, width, height = annotation["bbox"]
    annotation["bbox"] = box
    new = box[2] * box[3]
    if is_number(area) and (area > new or abs(area - width * height) <= 1e-6 * abs(area)):
        annotation["area"] = new
