"""What the checks of a data set share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from detectron2.config import CfgNode

from retina_plugin.data.checks.data_set import DataSet
from retina_plugin.data.checks.entries import Entries, Table
from retina_plugin.data.checks.findings import Findings
from retina_plugin.data.checks.image_files import ImageFiles


@dataclass
class Context:
    """A data set under check. A check adds to ``found``, and leaves in ``entries`` and ``table`` what the next can use.

    Attributes:
        data: is not changed.
        cfg: a configuration with the plugin's keys.
        files: reads the images; None to leave the files alone.
        num_classes: K of the model; None if it is not known.
        entries: those with all fields and, after ``check_ids``, with an image and a category.
        table: annotations as columns, from ``check_box_format`` on.
    """

    data: DataSet
    cfg: CfgNode
    found: Findings
    files: ImageFiles | None = None
    num_classes: int | None = None
    entries: Entries = field(default_factory=Entries)
    table: Table = field(default_factory=lambda: Table.of(Entries()))


Check = Callable[[Context], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check; ``run.ORDER`` says when it is called."""
    CHECKS.append(function)
    return function
