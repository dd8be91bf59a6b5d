"""Whether the classes are what the annotations, the registration and the configuration take them for."""

from collections import Counter

from retina_plugin.data.class_names import first_difference

from .findings import ERROR, NOTE, WARNING, declare

CATEGORY_ID = declare(
    "category-id-duplicate",
    ERROR,
    "Only the last category of an id is loaded: two classes are trained as one.",
    "Give every category an id of its own. --fix drops an exact copy.",
)
CATEGORY_NAME = declare(
    "category-name-duplicate",
    WARNING,
    "Two classes of one name: AP is printed for one of them, and their objects compete.",
    "Rename or merge them.",
)
NO_NAME = declare("category-name-empty", WARNING, "The class has no name in tables and images.", "Name it.")
NO_BOXES = declare(
    "category-empty",
    WARNING,
    "The class is never learnt, and its AP is NaN.",
    "Remove it, or add examples.",
)
FEW_BOXES = declare(
    "category-rare",
    WARNING,
    "A detector learns little from so few examples.",
    "Add examples; sample their images more often (DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler).",
)
BACKGROUND = declare(
    "category-background",
    WARNING,
    "RetinaNet has no background class: it is one class more that is trained and evaluated.",
    "Remove it, with its annotations: background is where no box is.",
)
MAPPED = declare(
    "category-ids-mapped",
    NOTE,
    "The ids are not 1..K: Detectron2 maps them, in their order, to labels 0..K-1 and back.",
    "Nothing.",
)
REGISTERED = declare(
    "category-registration",
    ERROR,
    "Loading stops with an AssertionError, or names and labels are mixed up.",
    "Register the data set without thing_classes and ids, or with those of the file in the order of their ids.",
)
CLASS_COUNT = declare(
    "category-count",
    ERROR,
    "The model has other classes than the data: training stops, or trains classes that do not exist.",
    "Set MODEL.RETINANET.NUM_CLASSES to the number of categories.",
)

FEW = 10
_BACKGROUND_NAMES = {"background", "bg", "back_ground"}


def check_categories(entries, data, num_classes, found):
    """Check the categories.

    Args:
        entries (Entries): of :func:`check_ids`.
        data (DataSet): that they are from.
        num_classes: K of the configuration, None if it is not known.
        found (Findings): gets what is wrong.
    """
    categories = entries.categories
    seen_ids, seen_names = set(), {}
    for category in categories:
        identifier, name = category["id"], category["name"].strip()
        if identifier in seen_ids:
            found.add(CATEGORY_ID, f"id {identifier!r} again, {name!r}", category=category)
        elif name and name in seen_names:
            detail = f"{name!r} has the ids {seen_names[name]!r} and {identifier!r}"
            found.add(CATEGORY_NAME, detail, category=category)
        elif not name:
            found.add(NO_NAME, f"category {identifier!r}", category=category)
        seen_ids.add(identifier)
        seen_names.setdefault(name, identifier)
    _check_numbers_of_boxes(entries, found)
    if len(categories) == len(data.coco["categories"]):
        _check_mapping(categories, data, num_classes, found)


def _check_numbers_of_boxes(entries, found):
    boxes = Counter(a["category_id"] for a in entries.annotations if not a.get("iscrowd"))
    if not boxes:
        return
    for category in entries.categories:
        identifier, name = category["id"], category["name"]
        number = boxes[identifier]
        if name.strip().strip("_").lower() in _BACKGROUND_NAMES:
            found.add(BACKGROUND, f"{name!r}, with {number} boxes", category=category)
        elif number == 0:
            hint = ""
            if identifier == 0 and len(entries.categories) > 1:
                hint = " and id 0: some programs write a background or a group of the others there"
            found.add(NO_BOXES, f"{name!r} has no box{hint}", category=category)
        elif number < FEW:
            found.add(FEW_BOXES, f"{name!r}: {number} boxes", category=category)


def _check_mapping(categories, data, num_classes, found):
    by_id = {category["id"]: category for category in categories}
    try:
        ids = sorted(by_id)
    except TypeError:
        ids = list(by_id)
        found.add(REGISTERED, "some ids are numbers and some strings, which have no order")
    if data.json_file is not None:
        if ids and ids != list(range(1, len(ids) + 1)):
            found.add(MAPPED, f"{len(ids)} ids from {ids[0]!r} to {ids[-1]!r}")
        names = [by_id[i]["name"] for i in ids]
        difference = first_difference(data.classes, names) if data.classes is not None else None
        if difference is not None:
            label, registered, ours = difference
            found.add(REGISTERED, f"label {label} is {registered} in thing_classes and {ours} in the file")
        labels = {identifier: label for label, identifier in enumerate(ids)}
        if data.labels is not None and dict(data.labels) != labels:
            identifier = next(i for i in [*labels, *data.labels] if labels.get(i) != data.labels.get(i))
            found.add(
                REGISTERED,
                f"id {identifier!r} is label {data.labels.get(identifier)} in thing_dataset_id_to_contiguous_id and "
                f"{labels.get(identifier)} by the file",
            )
    if num_classes is not None and len(ids) != num_classes:
        found.add(CLASS_COUNT, f"MODEL.RETINANET.NUM_CLASSES is {num_classes}, and there are {len(ids)} categories")
