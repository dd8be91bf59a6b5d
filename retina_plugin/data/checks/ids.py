"""Checks that ids are unique and refer to entries of the file."""

import os
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.entries import Entries, as_id
from retina_plugin.data.checks.findings import Entry, Finding, Findings, error_kind, warning_kind
from retina_plugin.data.checks.repair import (
    REFERENCES,
    Editor,
    by_number,
    drop_annotation,
    ids_in,
    new_annotation_id,
    repairs,
)

_id = itemgetter("id")

IMAGE_ID = error_kind("""image-id-duplicate: Only the last image of an id is loaded, with the boxes of all of them. Give
    every image an id of its own. --fix does if no box refers to the id.""")


@repairs(IMAGE_ID)
def _renumber_image(editor: Editor, finding: Finding) -> str | None:
    image = finding.entry
    if image == editor.first_images[image["id"]]:
        return editor.drop(image, "copy of an image")
    if image["id"] in editor.annotations_of:
        return None  # the boxes may be on either image
    image["id"] = editor.new_id("images")
    return "new id given"


FILE_NAME = warning_kind("""image-file-duplicate: The image is seen once for each entry, and the boxes of one entry are
    background in the others. Merge the entries.""")
ANNOTATION_ID = error_kind("""annotation-id-duplicate: Loading stops with an AssertionError. Number them from 1 on.
    --fix gives new ids.""")
ANNOTATION_ID_0 = error_kind("""annotation-id-zero: COCO's evaluation takes id 0 for no match: a detection that finds
    this object counts as false. Number the annotations from 1 on. --fix gives a new id.""")
ANNOTATION_ID_TEXT = error_kind("""annotation-id-text: COCO's evaluation stops with a ValueError at the first detection
    that finds the object, after the training. Number the annotations from 1 on. --fix gives new ids.""")
repairs(ANNOTATION_ID, ANNOTATION_ID_0, ANNOTATION_ID_TEXT)(new_annotation_id)

ID_TYPE = error_kind("""id-type: A number is not the string with its digits: the annotation is lost, or loading stops
    with a KeyError, or with a TypeError where ids are sorted. Use one type for all ids. --fix converts ids of
    annotations to those of images and categories, and strings among numbers there if they have digits alone.""")


@repairs(ID_TYPE)
def _convert_ids(editor: Editor, finding: Finding) -> str | None:
    entry, ids = finding.entry, editor.ids_by_number
    if finding.annotation is None:
        section = "images" if finding.category is None else "categories"
        number = as_id(entry["id"])
        if isinstance(number, str) or ids[section].get(number) != entry["id"]:
            return None
        entry["id"] = number
        return "id converted"
    for name, section in REFERENCES.items():
        entry[name] = ids[section].get(as_id(entry[name]), entry[name])
    return "id converted"


UNKNOWN_IMAGE = warning_kind("""image-unknown: Detectron2 drops annotations of images that are not in the file. Add the
    images, or remove the annotations. --fix removes them.""")
UNKNOWN_CATEGORY = error_kind("""category-unknown: Loading stops with a KeyError; with dicts, training stops at a class
    outside the model's. Add the category, or correct the annotations. --fix drops them.""")
repairs(UNKNOWN_IMAGE, UNKNOWN_CATEGORY)(drop_annotation)


@check
def check_ids(context: Context) -> None:
    """Find repeated ids and file names and dangling references, and keep annotations with an image and a category."""
    found, data, entries = context.found, context.data, context.entries
    for image in _repeated(entries.images, _id):
        found.add(IMAGE_ID, f"id {image['id']!r} again", image)
    for image in _repeated(entries.images, lambda image: os.path.normpath(data.path(image))):
        found.add(FILE_NAME, f"{image['file_name']} again", image)
    image_of = entries.image_of
    # Detectron2 accepts repeated ids in the files of COCO 2014 that are known for them.
    if data.json_file is None or "minival" not in str(data.json_file):
        for annotation in _repeated(entries.annotations, _id):
            found.add(ANNOTATION_ID, f"id {annotation['id']!r} again", image_of.get(annotation["image_id"]), annotation)
    # An entry that lacks a field cannot be used, but its id is known.
    known = {section: ids_in(data.coco[section]) for section in REFERENCES.values()}
    numbers = {section: by_number(ids) for section, ids in known.items()}
    _check_types(entries.images, found, lambda image: (image,))
    _check_types(entries.categories, found, lambda category: (None, None, category))
    classes = {category["id"] for category in entries.categories}
    usable = []
    for annotation in entries.annotations:
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        place = image_of.get(image_id), annotation
        number = _as_match(annotation["id"])
        if number is None:
            found.add(ANNOTATION_ID_TEXT, f"id is {annotation['id']!r}", *place)
        elif number == 0:
            found.add(ANNOTATION_ID_0, "id 0", *place)
        of_other_type = [
            name
            for name, section in REFERENCES.items()
            if annotation[name] not in known[section] and as_id(annotation[name]) in numbers[section]
        ]
        for name in of_other_type:
            found.add(ID_TYPE, f"{name} is {annotation[name]!r}, of another type", *place)
        if of_other_type:
            continue
        if image_id not in known["images"]:
            found.add(UNKNOWN_IMAGE, f"no image {image_id!r}", *place)
        elif category_id not in known["categories"]:
            found.add(UNKNOWN_CATEGORY, f"no category {category_id!r}", *place)
        elif image_id in image_of and category_id in classes:
            usable.append(annotation)
    context.entries = Entries(entries.images, usable, entries.categories)


def _as_match(identifier: Any) -> float | None:
    """What COCO's evaluation writes into its array of matches for an id; None if it stops at it."""
    try:
        return float(identifier)
    except (OverflowError, ValueError):
        return None


def _check_types(entries: list[Entry], found: Findings, place: Callable[[Entry], tuple[Entry | None, ...]]) -> None:
    strings = [entry for entry in entries if isinstance(entry["id"], str)]
    if len(strings) < len(entries):
        for entry in strings:
            found.add(ID_TYPE, f"id {entry['id']!r} among numbers", *place(entry))


def _repeated(entries: list[Entry], key: Callable[[Entry], Any]) -> Iterator[Entry]:
    """The entries whose key an entry before them has."""
    seen = set()
    for entry in entries:
        value = key(entry)
        if value in seen:
            yield entry
        seen.add(value)
