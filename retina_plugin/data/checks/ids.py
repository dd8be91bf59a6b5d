"""Whether ids are unique, and name something that is there."""

from collections import Counter

from .findings import ERROR, WARNING, declare
from .structure import Entries, is_id

IMAGE_ID = declare(
    "image-id-duplicate",
    ERROR,
    "Only the last image of an id is loaded, with the boxes of all of them.",
    "Give every image an id of its own. --fix does where no box says which image is meant.",
)
FILE_NAME = declare(
    "image-file-duplicate",
    WARNING,
    "The image is seen once for each entry, and the boxes of one entry are background in the others.",
    "Merge the entries.",
)
ANNOTATION_ID = declare(
    "annotation-id-duplicate",
    ERROR,
    "Loading stops with an AssertionError.",
    "Number the annotations from 1 on. --fix gives new ids.",
)
ANNOTATION_ID_0 = declare(
    "annotation-id-zero",
    WARNING,
    "COCO's evaluation takes id 0 for no match: a detection that finds this object counts as false.",
    "Number the annotations from 1 on. --fix gives a new id.",
)
ID_TYPE = declare(
    "id-type",
    ERROR,
    "A number is not the string with its digits: the annotation is lost, or loading stops with a KeyError.",
    "Use one type for all ids. --fix uses that of the images and categories.",
)
UNKNOWN_IMAGE = declare(
    "image-unknown",
    WARNING,
    "Detectron2 drops annotations of images that are not in the file.",
    "Add the images, or remove the annotations. --fix removes them.",
)
UNKNOWN_CATEGORY = declare(
    "category-unknown",
    ERROR,
    "Loading stops with a KeyError; with dicts, training stops at a class outside the model's.",
    "Add the category, or correct the annotations. --fix drops them.",
)


def check_ids(entries, data, found):
    """Check ids and references.

    Args:
        entries (Entries): of :func:`check_structure`.
        data (DataSet): that they are from.
        found (Findings): gets what is wrong.

    Returns:
        Entries: without annotations whose image or category is not there.
    """
    images, annotations, categories = entries
    for image in _repeated(images, "id"):
        found.add(IMAGE_ID, f"id {image['id']!r} again", image)
    for image in _repeated(images, "file_name"):
        found.add(FILE_NAME, f"{image['file_name']} again", image)

    image_of = {image["id"]: image for image in images}
    # Detectron2 lets this pass in the files of COCO 2014 that are known for it.
    if data.json_file is None or "minival" not in str(data.json_file):
        for annotation in _repeated(annotations, "id"):
            found.add(ANNOTATION_ID, f"id {annotation['id']!r} again", image_of.get(annotation["image_id"]), annotation)

    declared = {category["id"] for category in categories}
    # What lacks a field is no usable entry, but no unknown one either.
    there = {section: _all_ids(data.coco[section]) for section in ("images", "categories")}
    usable = []
    for annotation in annotations:
        image, category_id = image_of.get(annotation["image_id"]), annotation["category_id"]
        if annotation["id"] == 0:
            found.add(ANNOTATION_ID_0, "id 0", image, annotation)
        slip = False
        for name, section in (("image_id", "images"), ("category_id", "categories")):
            if annotation[name] not in there[section] and other_type(annotation[name]) in there[section]:
                found.add(ID_TYPE, f"{name} is {annotation[name]!r}, of another type", image, annotation)
                slip = True
        if slip:
            continue
        if annotation["image_id"] not in there["images"]:
            found.add(UNKNOWN_IMAGE, f"no image {annotation['image_id']!r}", None, annotation)
        elif category_id not in there["categories"]:
            found.add(UNKNOWN_CATEGORY, f"no category {category_id!r}", image, annotation)
        elif image is not None and category_id in declared:
            usable.append(annotation)
    return Entries(images, usable, categories)


def _all_ids(entries):
    return {entry["id"] for entry in entries if isinstance(entry, dict) and is_id(entry.get("id"))}


def other_type(value):
    """An id as a number if it is a string of digits, and as a string if it is a number."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else None
    return str(value)


def _repeated(entries, field):
    """The entries whose value of a field another one before had."""
    counts = Counter(entry[field] for entry in entries)
    seen = set()
    for entry in entries:
        value = entry[field]
        if counts[value] > 1:
            if value in seen:
                yield entry
            seen.add(value)
