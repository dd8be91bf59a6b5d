"""Checks that entries have the fields that Detectron2 and COCO's evaluation read, with valid values."""

from typing import Any

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.entries import Entries, as_numbers, is_box, is_id, is_name, is_number, is_side, shorten
from retina_plugin.data.checks.findings import Entry, Finding, Findings, error_kind
from retina_plugin.data.checks.repair import STRINGS_CONVERTED, Editor, drop_annotation, new_annotation_id, repairs

EMPTY_SECTION = error_kind("section-empty: Loading stops. Export the file again: a list in it is empty.")

NOT_AN_ENTRY = error_kind("entry-invalid: Loading stops with a TypeError. Remove all but objects. --fix does.")


@repairs(NOT_AN_ENTRY)
def _drop(editor: Editor, finding: Finding) -> str:
    for section in editor.data.sections:
        editor.data.coco[section] = editor.entries(section)
    return "dropped"


NO_FIELD = error_kind("""field-missing: Loading, the first batch or the evaluation stops with a KeyError. Add the field.
    --fix numbers annotations, takes sizes from the files, and drops what has no other remedy.""")
BAD_FIELD = error_kind("""field-invalid: Training or evaluation stops, or mistakes one entry for another. Ids are
    integers or strings, sides positive integers, names strings. --fix writes sides as numbers; else as for
    field-missing.""")


@repairs(NO_FIELD, BAD_FIELD)
def _complete(editor: Editor, finding: Finding) -> str | None:
    entry = finding.entry
    if finding.category is not None:
        return None
    if finding.annotation is not None:
        if not is_id(entry.get("id")) and is_id(entry.get("image_id")) and is_id(entry.get("category_id")):
            return new_annotation_id(editor, finding)
        return drop_annotation(editor, finding)
    if not is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
        return editor.drop(entry, "image")
    if is_side(entry.get("width")) and is_side(entry.get("height")):
        return None  # the other side's finding corrected both
    sides = {side: as_numbers(entry.get(side)) for side in ("width", "height")}
    if all(map(is_side, sides.values())):
        entry.update(sides)
        return STRINGS_CONVERTED
    file = editor.file(entry)
    if file is None:
        return None
    entry["width"], entry["height"] = file.turned_size
    return "size taken from the file"


BAD_BOX = error_kind("""box-malformed: Loading or the first batch with it stops. A box is a list of four numbers [x, y,
    width, height]. --fix converts strings of numbers, and drops the annotation otherwise.""")


@repairs(BAD_BOX)
def _convert_box(editor: Editor, finding: Finding) -> str | None:
    box = as_numbers(finding.entry["bbox"])
    if not is_box(box):
        return drop_annotation(editor, finding)
    finding.entry["bbox"] = box
    return STRINGS_CONVERTED


_FIELDS = {
    "image": {"id": is_id, "file_name": is_name, "width": is_side, "height": is_side},
    "annotation": {"id": is_id, "image_id": is_id, "category_id": is_id, "bbox": lambda value: True},
    "category": {"id": is_id, "name": lambda value: isinstance(value, str)},
}


@check
def check_structure(context: Context) -> None:
    """Find empty sections and entries with missing or invalid fields, and keep the other entries."""
    coco, found = context.data.coco, context.found
    empty = [section for section in ("images", "categories") if not coco[section]]
    for section in empty:
        found.add(EMPTY_SECTION, f"{section} is empty")
    if empty:
        return
    images = [entry for entry in coco["images"] if _has_fields(entry, "image", found, {})]
    categories = [entry for entry in coco["categories"] if _has_fields(entry, "category", found, {})]
    image_of = {image["id"]: image for image in images}
    annotations = [entry for entry in coco.get("annotations", ()) if _has_fields(entry, "annotation", found, image_of)]
    context.entries = Entries(images, [a for a in annotations if _has_box(a, found, image_of)], categories)


def _has_fields(entry: Any, section: str, found: Findings, image_of: dict[Any, Entry]) -> bool:
    if not isinstance(entry, dict):
        found.add(NOT_AN_ENTRY, f"{section} is {shorten(entry)}")
        return False
    image = image_of.get(entry["image_id"]) if is_id(entry.get("image_id")) else None
    place = {"image": (entry,), "annotation": (image, entry), "category": (None, None, entry)}[section]
    wrong = [name for name, is_good in _FIELDS[section].items() if not (name in entry and is_good(entry[name]))]
    for name in wrong:
        if name in entry:
            found.add(BAD_FIELD, f"{name} of {section} is {shorten(entry[name])}", *place)
        else:
            found.add(NO_FIELD, f"{section} without {name}", *place)
    return not wrong


def _has_box(annotation: Entry, found: Findings, image_of: dict[Any, Entry]) -> bool:
    if is_box(annotation["bbox"], is_number):
        return True
    found.add(BAD_BOX, f"bbox is {shorten(annotation['bbox'])}", image_of.get(annotation["image_id"]), annotation)
    return False
