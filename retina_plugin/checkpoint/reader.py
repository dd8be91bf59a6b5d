"""Reading checkpoints of every common format without running what they contain."""

import logging
import os
import pickle
import re
from typing import Any

import numpy as np
import torch

from retina_plugin.checkpoint import formats, safe_pickle
from retina_plugin.checkpoint.foreign import foreign_kinds
from retina_plugin.checkpoint.stand_ins import ForbiddenGlobal, UnsafePickle
from retina_plugin.checkpoint.torch_files import load_legacy, load_zip
from retina_plugin.checkpoint.weights_path import resolve_weights
from retina_plugin.core.errors import CheckpointError
from retina_plugin.core.text import list_some

_RISK = (
    "A pickle is a program, which runs when it is read and may do what its author likes with your files. Take weights "
    "only from whom you trust with that"
)
_NUMBER_KINDS = "biufc"


def read_checkpoint(path: str | os.PathLike, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Read weights, and what else their file has.

    ================================  =============================================================================
    content                           read as
    ================================  =============================================================================
    ``torch.save``, also before 1.6   ``torch.load(weights_only=True)``, with numpy arrays and scalars admitted
    the same with ``state_dict``      that as ``model``: mmdetection, Lightning
    the same with ``model_state``     a backbone of pycls, to be matched by name (``matching_heuristics``)
    pickle with ``model``             Detectron2's model zoo
    any other pickle                  Caffe2 or Detectron (1): ``blobs`` if there are, without momenta, to be matched
                                      by name
    safetensors                       tensors by name; needs the package ``safetensors``
    ================================  =============================================================================

    Pickles are read by :mod:`retina_plugin.checkpoint.safe_pickle`. The content decides; the name of the file does not
    matter.

    Args:
        path: a path, or an address; see :func:`~retina_plugin.checkpoint.weights_path.resolve_weights`.
        allow_pickle: read also what names functions and classes that may do anything, with a warning.

    Returns:
        dict: ``model``, a dict name -> finite tensor on the CPU or numpy array of numbers, and whatever else the file
        has.

    Raises:
        CheckpointError: the file is not there, not weights, damaged, or unsafe; values are not finite or no tensors.
    """
    file = resolve_weights(path)
    try:
        checkpoint = _as_checkpoint(*_read(file, allow_pickle))
        _check_model(checkpoint["model"])
    except formats.Unreadable as error:
        where = "" if file == os.fspath(path) else f" (the file is {file})"
        raise CheckpointError(f"weights {path}: {error}{where}") from error.__cause__
    except OSError as error:
        raise CheckpointError(f"weights {path}: they cannot be read ({error})") from error
    return checkpoint


def _read(file, allow_pickle):
    """The content of a file, and whether it is a plain pickle."""
    kind = formats.format_of(file)
    if kind == formats.SAFETENSORS:
        return {"model": _read_safetensors(file)}, False
    is_pickle = kind == formats.PICKLE
    try:
        value = _read_pickle(file) if is_pickle else load_zip(file) if kind == formats.ZIP else load_legacy(file)
    except (OSError, formats.Unreadable):
        raise
    except UnsafePickle as error:
        if not allow_pickle:
            raise formats.Unreadable(_unsafe(error)) from error
        return _read_anything(file, is_pickle, str(error)), is_pickle
    except Exception as error:  # what is damaged fails in many ways
        raise formats.Unreadable(_damaged(error)) from error
    left_out = foreign_kinds(value)
    if not left_out:
        return value, is_pickle
    objects = f"it has objects ({list_some(left_out, 5)})"
    if allow_pickle:
        try:
            return _read_anything(file, is_pickle, objects), is_pickle
        except formats.Unreadable as error:  # their code is not installed
            logging.getLogger(__name__).warning("%s: %s, which are left out (%s).", file, objects, error)
    else:
        logging.getLogger(__name__).info("%s: %s, which are left out.", file, objects)
    return value, is_pickle


def _read_pickle(file):
    with open(file, "rb") as f:
        return safe_pickle.load(f)


def _read_anything(file, is_pickle, what):
    logging.getLogger(__name__).warning("%s: %s, and is read all the same (allow_pickle). %s.", file, what, _RISK)
    try:
        if not is_pickle:
            return torch.load(file, map_location="cpu", weights_only=False)
        with open(file, "rb") as f:
            return pickle.load(f, encoding="latin1")
    except Exception as error:  # of the code that it runs
        raise formats.Unreadable(_damaged(error)) from error


def _read_safetensors(file):
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise formats.Unreadable(
            "this is a safetensors file, and the package that reads them is not installed: pip install safetensors"
        ) from None
    try:
        return load_file(file)
    except SafetensorError as error:
        raise formats.Unreadable(_damaged(error)) from error


def _damaged(error):
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, KeyError):  # its text is the key alone
        reason = f"unknown entry {reason}"
    if isinstance(error, EOFError) or re.search(r"truncated|unexpected EOF|ran out of input|exhausted", reason, re.I):
        return f"this file is truncated ({reason}). Get it again"
    return f"this is no file of weights, or a damaged one ({reason}). Get it again, or name another"


def _unsafe(error):
    if isinstance(error, ForbiddenGlobal):
        what = f"this file is unsafe: {error}, which weights do not need. Nothing of it was run"
    else:
        what = f"this file is more than weights ({error})"
    return f"{what}. {_RISK}: MODEL.WEIGHTS_ALLOW_PICKLE True reads it all the same"


def _as_checkpoint(data, is_pickle):
    if not isinstance(data, dict):
        raise formats.Unreadable(f"this is a {type(data).__name__}, not a dict with the weights as 'model'")
    if "model" in data:
        return data
    if is_pickle:
        blobs = data.get("blobs", data)  # ImageNet models have none
        if isinstance(blobs, dict):
            blobs = {key: value for key, value in blobs.items() if not str(key).endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    if isinstance(data.get("state_dict"), dict):
        return {"model": data["state_dict"], **{key: value for key, value in data.items() if key != "state_dict"}}
    if isinstance(data.get("model_state"), dict):
        state = data["model_state"]
        state = {key: value for key, value in state.items() if not str(key).endswith("num_batches_tracked")}
        return {"model": state, "__author__": "pycls", "matching_heuristics": True}
    return {"model": data}


def _check_model(model):
    if not isinstance(model, dict):
        raise formats.Unreadable(f"its 'model' is a {type(model).__name__}, not a dict of tensors")
    if not model:
        raise formats.Unreadable("it has no weights: its 'model' is an empty dict")
    others = [key for key, value in model.items() if not (isinstance(key, str) and _is_numbers(value))]
    if others:
        keys = ", ".join(str(key) for key in list(model)[:8])
        if len(others) == len(model):
            raise formats.Unreadable(
                f"it has no 'model' that is a dict of tensors; its keys are {keys}. Save the weights as "
                "{'model': state_dict}"
            )
        value = model[others[0]]
        raise formats.Unreadable(
            f"{len(others)} of its {len(model)} values are no tensors: '{others[0]}' is a {_kind(value)}. Save the "
            "weights as {'model': state_dict}"
        )
    _check_finite(model)


def _is_numbers(value):
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in _NUMBER_KINDS)


def _kind(value):
    return f"numpy array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _check_finite(model):
    bad = {}
    for name, value in model.items():
        value = torch.as_tensor(value)
        if value.is_floating_point() and not value.isfinite().all():
            bad[name] = f"{(~value.isfinite()).sum()} of {value.numel()} values of {name}"
    if bad:
        more = f", and some of {len(bad) - 1} other tensors" if len(bad) > 1 else ""
        raise formats.Unreadable(
            f"the weights diverged: {next(iter(bad.values()))} are not finite{more}. Use an earlier checkpoint"
        )
