"""The folder of a prediction: what it holds, and that nothing in it is lost."""

import os
from collections.abc import Iterable
from pathlib import Path

from retina_plugin.core.errors import FileError
from retina_plugin.core.files import remove_unfinished
from retina_plugin.core.previous_run import matching_files, move_to_previous
from retina_plugin.core.text import one_line
from retina_plugin.runtime.inputs import Source
from retina_plugin.tools.predict.results import COCO_LABELS, IMAGES, RESULTS, TABLE
from retina_plugin.tools.predict.spool import SUFFIX

ANNOTATED, LABELS, CLASSES, SUMMARY = "annotated", "labels", "classes.txt", "summary.json"
# What a prediction writes. All other files belong to the user and stay. The summary is the last to be written.
_OWN = (SUMMARY, RESULTS, TABLE, IMAGES, COCO_LABELS, CLASSES, ANNOTATED, LABELS)


def prepare_output(folder: Path, sources: Iterable[Source], overwrite: bool) -> None:
    """Make the folder; refuse it with the results of another prediction, or move these away.

    With ``overwrite``, they are moved into ``previous_run_N`` of the folder.

    Raises:
        FileError: the folder holds results, inputs would be among the results, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is not a folder: name another --output")
    own = {os.path.realpath(folder / name) for name in _OWN}
    for source in sources:
        path = Path(os.path.realpath(source.name))
        if own & {str(path), *map(str, path.parents)}:
            raise FileError(f"{one_line(source.name)} lies where results are written: name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    found = [name for name in _OWN if matching_files(str(folder), name)]
    if found and not overwrite:
        raise FileError(
            f"{folder} holds results already ({', '.join(found)}): name another --output, or give --overwrite, which "
            "moves them into a folder previous_run_N"
        )
    remove_unfinished(folder, SUFFIX)
    if found:
        move_to_previous(str(folder), found)
