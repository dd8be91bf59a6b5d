"""Checks of the folder for results."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode


def output_dir_problems(cfg: CfgNode) -> Iterator[str]:
    """Yield a line if ``OUTPUT_DIR`` is empty, or can neither be written nor made. A remote folder is not checked."""
    folder = cfg.OUTPUT_DIR
    if not folder:
        yield "OUTPUT_DIR is empty: name a folder for checkpoints, metrics and results"
        return
    if "://" in folder:
        return
    path = Path(folder).absolute()
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
        existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
        os.rmdir(tempfile.mkdtemp(dir=existing))  # rights alone do not tell, as for root or on a read-only disk
    except NotADirectoryError:
        yield f"OUTPUT_DIR {folder} cannot be made: {existing} is not a folder. Choose another one"
    except (OSError, ValueError) as error:
        yield f"OUTPUT_DIR {folder} cannot be used: {getattr(error, 'strerror', None) or error}. Choose another folder"
