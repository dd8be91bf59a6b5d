"""Checks that the classes agree with the annotations, the registration and the configuration."""

from collections import Counter

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.findings import Finding, error_kind, note_kind, warning_kind
from retina_plugin.data.checks.repair import Editor, repairs
from retina_plugin.data.class_names import first_difference

CATEGORY_ID = error_kind("""category-id-duplicate: Only the last category of an id is loaded: two classes are trained as
    one. Give every category an id of its own. --fix drops an exact copy.""")


@repairs(CATEGORY_ID)
def _drop_copy(editor: Editor, finding: Finding) -> str | None:
    is_copy = finding.entry == editor.first_categories[finding.entry["id"]]
    return editor.drop(finding.entry, "copy of a category") if is_copy else None


CATEGORY_NAME = warning_kind("""category-name-duplicate: Two classes have one name: AP is printed for one of them, and
    their objects compete. Rename or merge them.""")
NO_NAME = warning_kind("category-name-empty: The class has no name in tables and images. Name it.")
NO_BOXES = warning_kind("category-empty: The class is never learned; its AP is NaN. Remove it, or add examples.")
FEW_BOXES = warning_kind("""category-rare: A detector learns little from so few examples. Add examples; sample their
    images more often (DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler).""")
BACKGROUND = warning_kind("""category-background: RetinaNet has no background class: one more class is trained and
    evaluated. Remove it, with its annotations: background is where no box is.""")
MAPPED = note_kind("""category-ids-mapped: The ids are not 1..K: Detectron2 maps them, in order, to labels 0..K-1.
    Nothing to do.""")
REGISTERED = error_kind("""category-registration: Loading stops with an AssertionError, or names and labels are mixed
    up. Register the data set without thing_classes and ids, or with those of the file in the order of their ids.""")
CLASS_COUNT = error_kind("""category-count: The model has other classes than the data: training stops, or trains classes
    that do not exist. Set MODEL.RETINANET.NUM_CLASSES to the number of categories.""")

_FEW = 10
_BACKGROUND_NAMES = {"background", "bg", "back_ground"}


@check
def check_categories(context: Context) -> None:
    """Find repeated categories, classes with few boxes, and classes that are not those of registration and model."""
    categories, found = context.entries.categories, context.found
    names: dict[str, object] = {}
    seen = set()
    for category in categories:
        identifier, name = category["id"], category["name"].strip()
        if identifier in seen:
            found.add(CATEGORY_ID, f"id {identifier!r} again, {name!r}", None, None, category)
        elif name and name in names:
            detail = f"{name!r} has the ids {names[name]!r} and {identifier!r}"
            found.add(CATEGORY_NAME, detail, None, None, category)
        elif not name:
            found.add(NO_NAME, f"category {identifier!r}", None, None, category)
        seen.add(identifier)
        names.setdefault(name, identifier)
    _check_numbers_of_boxes(context)
    if len(categories) == len(context.data.coco["categories"]):
        _check_labels(context)


def _check_numbers_of_boxes(context: Context) -> None:
    entries, found = context.entries, context.found
    boxes = Counter(a["category_id"] for a in entries.annotations if id(a) not in context.dropped)
    for category in entries.categories if boxes else ():
        identifier, name = category["id"], category["name"]
        number = boxes[identifier]
        if name.strip().strip("_").lower() in _BACKGROUND_NAMES:
            found.add(BACKGROUND, f"{name!r}, with {number} boxes", None, None, category)
        elif number == 0:
            hint = " that training uses" if any(a["category_id"] == identifier for a in entries.annotations) else ""
            if identifier == 0 and len(entries.categories) > 1:
                hint = " and id 0: some programs write a background or a group of the others there"
            found.add(NO_BOXES, f"{name!r} has no box{hint}", None, None, category)
        elif number < _FEW:
            found.add(FEW_BOXES, f"{name!r}: {number} boxes", None, None, category)


def _check_labels(context: Context) -> None:
    data, found, num_classes = context.data, context.found, context.num_classes
    by_id = {category["id"]: category for category in context.entries.categories}
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
