"""Runs the checks of a data set in order, and the repairs of what they found."""

from collections import Counter

from retina_plugin.data.checks.anchors import check_anchors
from retina_plugin.data.checks.annotations import check_areas, check_fields
from retina_plugin.data.checks.boxes import check_box_format, check_boxes
from retina_plugin.data.checks.categories import check_categories
from retina_plugin.data.checks.context import Context, DataSet
from retina_plugin.data.checks.findings import Findings, Kind
from retina_plugin.data.checks.ids import UNKNOWN_IMAGE, check_ids
from retina_plugin.data.checks.image_files import ImageFiles
from retina_plugin.data.checks.images import check_boxes_per_image, check_images
from retina_plugin.data.checks.repair import REPAIRS, Editor
from retina_plugin.data.checks.structure import check_structure

# Each check reads what the ones before it left as usable, so that one mistake gives one finding.
ORDER = (
    check_structure,
    check_images,
    check_ids,
    check_categories,
    check_fields,
    check_boxes_per_image,
    check_box_format,
    check_boxes,
    check_areas,
    check_anchors,
)
_MAX_PASSES = 6

Changes = dict[tuple[Kind, str], int]  # how often what was done for each kind


def check_data_set(context: Context, *, anchors: bool = True) -> None:
    """Check a data set; ``context.found`` gets what is wrong.

    Args:
        context: of the data set, new.
        anchors: whether to check the anchors, which takes most of the time after the images.
    """
    for check in ORDER:
        if anchors or check is not check_anchors:
            check(context)


def repair_until_clean(context: Context) -> tuple[Changes, Findings]:
    """Repair ``context.data.coco`` and check it again, until nothing is left that can be repaired with certainty.

    Returns:
        The changes and the findings that are left.
    """
    data, found, changes = context.data, context.found, Counter[tuple[Kind, str]]()
    for _ in range(_MAX_PASSES):
        made = _repair_once(data, found, context.files)
        changes.update(made)
        found = Findings()
        # Anchors have no repair: only the last pass needs them.
        check_data_set(Context(data, context.cfg, found, context.files, context.num_classes), anchors=not made)
        if not made:
            break
    return dict(changes), found


def _repair_once(data: DataSet, found: Findings, files: ImageFiles | None) -> Changes:
    editor, changes = Editor(data, files), Counter[tuple[Kind, str]]()
    for finding in found:
        done = REPAIRS[finding.kind](editor, finding) if finding.kind in REPAIRS else None
        if done:
            changes[finding.kind, done] += 1
    number = editor.finish()
    if number:
        changes[UNKNOWN_IMAGE, "annotation of a dropped image dropped"] = number
    return changes
