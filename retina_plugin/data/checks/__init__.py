"""What Detectron2 would stop at late, learn wrongly, or drop without a word, found before training.

``data_set`` brings every source into the form of a COCO file. The checks go over it in one order, each on what the
ones before left usable, so that one slip is one finding: ``structure``, ``images``, ``ids``, ``categories``,
``annotations``, ``per_image``, ``box_format``, ``boxes``, ``anchors``. ``repair`` corrects what has one certain
correction; ``report`` prints and writes what was found.
"""

from .anchors import check_anchors
from .annotations import check_areas, check_fields
from .box_format import check_box_format
from .boxes import check_boxes
from .categories import check_categories
from .data_set import from_catalog, from_json
from .findings import ERROR, KINDS, CannotCheck, Findings
from .ids import check_ids
from .image_files import ImageFiles
from .images import check_images
from .per_image import check_numbers_of_boxes
from .repair import repair
from .structure import check_structure
from .table import Table

__all__ = [
    "ERROR",
    "KINDS",
    "CannotCheck",
    "Findings",
    "ImageFiles",
    "check_data_set",
    "from_catalog",
    "from_json",
    "repair_until_clean",
]

_MOST_PASSES = 6


def check_data_set(data, cfg, found, *, files=None, num_classes=None, anchors=True):
    """Check a data set against a configuration.

    Args:
        data (DataSet): is not changed.
        cfg: a configuration with the plugin's keys.
        found (Findings): gets what is wrong.
        files (ImageFiles): that looks into the images, None to leave the files alone.
        num_classes: K that the model will have, None if nobody said.
        anchors: whether to check the anchors, which takes most of the time after the images.
    """
    entries = check_structure(data.coco, found)
    check_images(entries.images, data, cfg, files, found)
    entries = check_ids(entries, data, found)
    check_categories(entries, data, num_classes, found)
    check_fields(entries.annotations, {image["id"]: image for image in entries.images}, found)
    check_numbers_of_boxes(entries, cfg, found)
    table = Table.of(entries)
    if not check_box_format(table, found):
        return
    table = check_boxes(table, cfg, found)
    check_areas(table, found)
    if anchors:
        check_anchors(table, cfg, found)


def repair_until_clean(data, cfg, found, *, files=None, num_classes=None):
    """Repair a data set in memory, and check it again, until nothing is left that can be repaired with certainty.

    Args:
        data (DataSet): its ``coco`` is changed.
        found (Findings): of :func:`check_data_set` on it.
        cfg, files, num_classes: as there.

    Returns:
        changes: dict of (kind, what was done) to how often.
        left (Findings): what is wrong still.
    """
    changes = {}
    for _ in range(_MOST_PASSES):
        made = repair(data, found, files)
        for change, number in made.items():
            changes[change] = changes.get(change, 0) + number
        found = Findings()
        # Anchors have no repair: they are for the last pass.
        check_data_set(data, cfg, found, files=files, num_classes=num_classes, anchors=not made)
        if not made:
            break
    return changes, found
