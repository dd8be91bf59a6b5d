"""The files that a command writes into a folder of the user's choice."""

from collections.abc import Sequence
from pathlib import Path

from retina_plugin.core.files import require_new_file


def new_files(folder: Path | None, names: Sequence[str], overwrite: bool) -> list[Path]:
    """Return the paths of files to write into a folder, which is made; none without a folder.

    Raises:
        FileError: one of them exists, and ``overwrite`` is False.
    """
    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for path in paths:
        require_new_file(path, overwrite=overwrite)
    return paths
