"""Runs the checks of a data set in order, and the repairs of what they found."""

from collections import Counter
from typing import NamedTuple

from retina_plugin.data.checks.anchors import check_anchors
from retina_plugin.data.checks.annotations import check_areas, check_fields
from retina_plugin.data.checks.boxes import check_box_format, check_boxes
from retina_plugin.data.checks.categories import check_categories
from retina_plugin.data.checks.context import Context, DataSet
from retina_plugin.data.checks.dropped import check_dropped
from retina_plugin.data.checks.findings import Findings, Kind
from retina_plugin.data.checks.ids import UNKNOWN_IMAGE, check_ids
from retina_plugin.data.checks.image_files import ImageFiles
from retina_plugin.data.checks.images import check_boxes_per_image, check_images
from retina_plugin.data.checks.names import check_names
from retina_plugin.data.checks.repair import REPAIRS, Editor
from retina_plugin.data.checks.structure import check_structure

# Each check reads what the ones before it left as usable, so that one mistake gives one finding.
ORDER = (
    check_structure,
    check_names,
    check_images,
    check_ids,
    check_dropped,
    check_categories,
    check_fields,
    check_boxes_per_image,
    check_box_format,
    check_boxes,
    check_areas,
    check_anchors,
)
_MAX_PASSES = 6
MAX_DROPPED = 0.05  # of a section: if more has to go, the slip is systematic, and has another remedy

Changes = dict[tuple[Kind, str], int]  # how often what was done for each kind


class Repaired(NamedTuple):
    """What the repair of a data set did.

    Attributes:
        changes: by kind and what was done.
        left: the findings that are left.
        sizes: by section, the number of entries after and before.
    """

    changes: Changes
    left: Findings
    sizes: dict[str, tuple[int, int]]

    @property
    def drops_much(self) -> bool:
        """Whether more than ``MAX_DROPPED`` of a section is gone."""
        return any(before - after > MAX_DROPPED * before for after, before in self.sizes.values())


def check_data_set(context: Context, *, anchors: bool = True) -> None:
    """Check a data set; ``context.found`` gets what is wrong.

    Args:
        context: of the data set, new.
        anchors: whether to check the anchors, which takes most of the time after the images.
    """
    for check in ORDER:
        if anchors or check is not check_anchors:
            check(context)


def repair_until_clean(context: Context) -> Repaired:
    """Repair ``context.data.coco`` and check it again, until nothing is left that can be repaired with certainty."""
    data, found, changes = context.data, context.found, Counter[tuple[Kind, str]]()
    before = _sizes(data)
    for _ in range(_MAX_PASSES):
        made = _repair_once(data, found, context.files)
        changes.update(made)
        found = Findings()
        # Anchors have no repair: only the last pass needs them.
        check_data_set(Context(data, context.cfg, found, context.files, context.num_classes), anchors=not made)
        if not made:
            break
    after = _sizes(data)
    return Repaired(dict(changes), found, {section: (after[section], before[section]) for section in before})


def _sizes(data: DataSet) -> dict[str, int]:
    return {section: len(data.coco[section]) for section in data.sections}


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
