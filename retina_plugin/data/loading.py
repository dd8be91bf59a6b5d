"""Errors of loading data sets, as lines that name the set and what to do."""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
import iopath
import pycocotools
from detectron2.data import DatasetCatalog
from torch.utils.data import Dataset

from retina_plugin.core.errors import ConfigError, UserError
from retina_plugin.core.text import describe_error

# What Detectron2 raises for data that it cannot use, once the sets are loaded.
_OF_DETECTRON2 = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
_DETECTRON2 = str(Path(detectron2.__file__).parent)
_LIBRARIES = (_DETECTRON2, str(Path(pycocotools.__file__).parent), str(Path(iopath.__file__).parent))


@contextlib.contextmanager
def explain_loading(key: str, names: Sequence[str]) -> Iterator[None]:
    """Turn what loading and filtering data sets raises into an error that says what is wrong.

    Args:
        key: where the configuration names the sets, such as "DATASETS.TRAIN".
        names: the sets.

    Raises:
        ConfigError: a set cannot be loaded, or has nothing to train on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = _explain(error, key, names)
        if problem is None:
            raise
        raise ConfigError([problem]) from error


def _explain(error: Exception, key: str, names: Sequence[str]) -> str | None:
    records: list[dict[str, Any]] = []
    for name in names:
        what, check = f"data set '{name}' of {key}", f"`python -m retina_plugin check-data {name}` says what is wrong"
        try:
            loaded = DatasetCatalog.get(name)
        except Exception as cause:  # also of the function that someone registered
            return f"{what} cannot be loaded: {describe_error(cause)}{_place(cause)}. {check}"
        if isinstance(loaded, Dataset):
            continue
        if not isinstance(loaded, Sequence) or not all(isinstance(record, dict) for record in loaded):
            return f"{what} is not a list of dicts, one for each image: its function returned {str(loaded)[:50]}"
        if not loaded:
            return f"{what} is empty: it has no images. {check}"
        records += loaded
    if "No valid data found" in str(error):
        annotations = [annotation for record in records for annotation in record.get("annotations", ())]
        has = f"{len(annotations)} annotations, all of them crowds (iscrowd 1)" if annotations else "no annotations"
        return (
            f"none of the {len(records)} images of {key} ({', '.join(names)}) has an object to train on: they have "
            f"{has}. Correct the annotations, or name another set"
        )
    if isinstance(error, _OF_DETECTRON2) and _is_of_detectron2(error):
        return f"{key} ({', '.join(names)}) cannot be used: {describe_error(error)}"
    return None


def _is_of_detectron2(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_DETECTRON2)


def _place(error: Exception) -> str:
    """Where in someone's function an error was raised; empty if that is not known."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == __file__:
            break
        if not any(library in frame.filename for library in _LIBRARIES):
            return f" ({frame.filename}, line {frame.lineno}, in {frame.name})"
    return ""
