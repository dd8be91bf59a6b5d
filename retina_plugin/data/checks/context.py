"""What the checks of a data set share."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from retina_plugin.data.checks.entries import Entries, Table
from retina_plugin.data.checks.findings import Entry, Findings
from retina_plugin.data.checks.image_files import ImageFiles


@dataclass
class DataSet:
    """A data set in the form of a COCO file."""

    name: str  # in reports
    coco: dict[str, Any]  # with the lists of ``sections``, as in the file
    image_root: str | None = None  # folder of relative file names; None if they are complete
    json_file: str | None = None  # None if the data set is made of dicts
    classes: Sequence[str] | None = None  # registered names, in the order of labels
    labels: Mapping[Any, int] | None = None  # registered labels 0..K-1, by category id
    # File names of images that the last check could correct, with the right ones.
    right_names: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def sections(self) -> list[str]:
        """Names of the lists of entries; a test set may have no annotations."""
        return [section for section in ("images", "annotations", "categories") if section in self.coco]

    def path(self, image: Entry) -> str:
        """Path of the file of an image, joined of folder and name as in Detectron2."""
        name = image["file_name"]
        return name if self.image_root is None else os.path.join(self.image_root, name)

    def has_folder(self) -> bool:
        """Whether the folder of images is there; True if file names are complete."""
        return self.image_root is None or PathManager.isdir(self.image_root)


@dataclass
class Context:
    """A data set under check. A check adds to ``found``, and leaves in ``entries`` and ``table`` what others use."""

    data: DataSet  # is not changed
    cfg: CfgNode  # with the plugin's keys
    found: Findings
    files: ImageFiles | None = None  # reads the images; None to leave the files alone
    num_classes: int | None = None  # K of the model; None if it is not known
    entries: Entries = field(default_factory=Entries)  # after check_ids, annotations have an image and a category
    wrong_sizes: set[int] = field(default_factory=set)  # after check_images: id() of images of another size
    dropped: dict[int, str] = field(default_factory=dict)  # after check_dropped: id() of annotations, and why
    table: Table = field(default_factory=lambda: Table.of(Entries()))  # from check_box_format on


Check = Callable[[Context], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check; ``run.ORDER`` says when it is called."""
    CHECKS.append(function)
    return function
