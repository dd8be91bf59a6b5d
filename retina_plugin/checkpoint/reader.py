"""Reading checkpoints of every common format without running what they contain."""

import logging
import os
import pickle
import re
from typing import Any

import numpy as np
import torch

from retina_plugin.checkpoint import formats, safe_pickle
from retina_plugin.checkpoint.compare import FLOATS
from retina_plugin.checkpoint.foreign import Foreign, foreign_kinds
from retina_plugin.checkpoint.stand_ins import ForbiddenGlobal, UnsafePickle
from retina_plugin.checkpoint.torch_files import load_legacy, load_zip
from retina_plugin.checkpoint.weights_path import resolve_weights, split_query
from retina_plugin.core.errors import CheckpointError
from retina_plugin.core.text import list_some

_RISK = (
    "A pickle is a program, which runs when it is read and may do what its author likes with your files. Take weights "
    "only from whom you trust with that"
)
_NUMBER_KINDS = "biufc"


def read_checkpoint(
    path: str | os.PathLike,
    *,
    allow_pickle: bool = False,
    allow_pickle_option: str = "MODEL.WEIGHTS_ALLOW_PICKLE True",
    path_manager: Any | None = None,
) -> dict[str, Any]:
    """Read weights, and what else their file has.

    ================================  =============================================================================
    content                           read as
    ================================  =============================================================================
    ``torch.save``, also before 1.6   Detectron2's own checkpoints, if it has ``model``, or a state dict
    the same with ``state_dict``      that as ``model``: mmdetection, Lightning
    the same with ``model_state``     a backbone of pycls, to be matched by name (``matching_heuristics``)
    pickle with ``model``             Detectron2's model zoo
    any other pickle                  Caffe2 or Detectron (1): ``blobs`` if there are, without momenta, to be matched
                                      by name
    safetensors                       tensors by name; needs the package ``safetensors``
    ================================  =============================================================================

    Pickles, also those within the files of torch, are read by :mod:`retina_plugin.checkpoint.safe_pickle`: tensors,
    arrays, numbers, text and containers of them, while objects of other classes become placeholders. The content
    decides; the name of the file does not matter.

    Args:
        path: a path, or an address; see :func:`~retina_plugin.checkpoint.weights_path.resolve_weights`. With
            ``?matching_heuristics=True`` at its end, the names are matched as those of other models.
        allow_pickle: read also what names functions and classes that may do anything, with a warning.
        allow_pickle_option: how the user sets ``allow_pickle``, for the error.
        path_manager: fetches addresses; None for Detectron2's ``PathManager``.

    Returns:
        dict: ``model``, a dict name -> finite tensor on the CPU or numpy array of numbers, and whatever else the file
        has.

    Raises:
        CheckpointError: the file is not there, not weights, damaged, or unsafe; values are not finite or no tensors.
    """
    address, by_heuristics = split_query(path)
    file = resolve_weights(address, path_manager)
    try:
        checkpoint = _as_checkpoint(*_read(file, allow_pickle, allow_pickle_option))
        if by_heuristics:
            checkpoint["matching_heuristics"] = True
        _check_model(checkpoint["model"])
    except formats.Unreadable as error:
        where = "" if file == address else f" (the file is {file})"
        raise CheckpointError(f"weights {path}: {error}{where}") from error.__cause__
    except OSError as error:
        raise CheckpointError(f"weights {path}: they cannot be read ({error})") from error
    return checkpoint


def _read(file, allow_pickle, option):
    """The content of a file, and whether it is a plain pickle."""
    kind = formats.format_of(file)
    if kind == formats.SAFETENSORS:
        return {"model": _read_safetensors(file)}, False
    is_pickle, logger = kind == formats.PICKLE, logging.getLogger(__name__)
    try:
        value = _read_pickle(file) if is_pickle else load_zip(file) if kind == formats.ZIP else load_legacy(file)
    except (OSError, formats.Unreadable):
        raise
    except UnsafePickle as error:
        if not allow_pickle:
            raise formats.Unreadable(f"{_unsafe(error)}. {_RISK}: {option} reads it all the same") from error
        logger.warning("%s: %s, and is read all the same (allow_pickle). %s.", file, error, _RISK)
        try:
            return _run(file, is_pickle), is_pickle
        except Exception as error:  # of the code that it runs
            raise formats.Unreadable(_damaged(error)) from error
    except Exception as error:  # what is damaged fails in many ways
        raise formats.Unreadable(_damaged(error)) from error
    if left_out := foreign_kinds(value):
        kinds = list_some(left_out, 5)
        if not allow_pickle:
            logger.info("%s: objects beside the weights are left out (%s).", file, kinds)
        else:
            logger.warning("%s: it has objects of %s, which are read (allow_pickle). %s.", file, kinds, _RISK)
            try:
                return _run(file, is_pickle), is_pickle
            except Exception as error:  # their code is not installed
                logger.warning("%s: these objects are left out (%s).", file, " ".join(str(error).split()))
    return value, is_pickle


def _read_pickle(file):
    with open(file, "rb") as f:
        return safe_pickle.load(f)


def _run(file, is_pickle):
    """What a pickle makes by running whatever it names."""
    if not is_pickle:
        return torch.load(file, map_location="cpu", weights_only=False)
    with open(file, "rb") as f:
        return pickle.load(f, encoding="latin1")


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
    reason = _printable(reason)
    if isinstance(error, EOFError) or re.search(r"truncated|unexpected EOF|ran out of input|exhausted", reason, re.I):
        return f"this file is truncated ({reason}). Get it again"
    return f"this is no file of weights, or a damaged one ({reason}). Get it again, or name another"


def _unsafe(error):
    if isinstance(error, ForbiddenGlobal):
        return f"this file is unsafe: {error}, which weights do not need. Nothing of it was run"
    return f"this file is more than weights ({error})"


def _as_checkpoint(data, is_pickle):
    if not isinstance(data, dict):
        raise formats.Unreadable(f"this is a {_kind(data)}, not a dict with the weights as 'model'")
    if "model" in data:
        # What decides how names are matched has values of a known type, or counts as missing.
        if not isinstance(data.get("__author__", ""), str):
            del data["__author__"]
        if "matching_heuristics" in data:
            data["matching_heuristics"] = data["matching_heuristics"] is True
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
        raise formats.Unreadable(f"its 'model' is a {_kind(model)}, not a dict of tensors")
    if not model:
        raise formats.Unreadable("it has no weights: its 'model' is an empty dict")
    others = [key for key, value in model.items() if not (isinstance(key, str) and _is_dense(value))]
    odd_tensors = [key for key in others if _is_tensor(model[key])]
    if odd_tensors:
        raise formats.Unreadable(
            f"{len(odd_tensors)} of its {len(model)} tensors cannot be loaded: '{_printable(odd_tensors[0])}' is a "
            f"{_kind(model[odd_tensors[0]])} in the file and a dense tensor of numbers in the model. Save its values "
            "as such"
        )
    if len(others) == len(model):
        keys = ", ".join(map(_printable, list(model)[:8]))
        raise formats.Unreadable(
            f"it has no 'model' that is a dict of tensors; its keys are {keys}. Save the weights as "
            "{'model': state_dict}"
        )
    if others:
        raise formats.Unreadable(
            f"{len(others)} of its {len(model)} values are no tensors: '{_printable(others[0])}' is a "
            f"{_kind(model[others[0]])}. Save the weights as {{'model': state_dict}}"
        )
    _check_finite(model)


def _printable(key):
    """A name of the file without line breaks and terminal codes, and not too long."""
    text = str(key)[:200]
    return text if text.isprintable() else ascii(text)


def _is_tensor(value):
    return isinstance(value, torch.Tensor) or (isinstance(value, Foreign) and "tensor" in value.kind)


def _is_dense(value):
    """Whether it has numbers that torch can copy one by one."""
    if isinstance(value, torch.Tensor):
        return value.layout == torch.strided and not (value.is_quantized or value.is_meta or value.is_nested)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _NUMBER_KINDS:
        return False
    return value.dtype.itemsize <= (16 if value.dtype.kind == "c" else 8)  # torch has no wider ones


def _kind(value):
    if isinstance(value, Foreign):
        return value.kind
    if isinstance(value, torch.Tensor) and not _is_dense(value):  # read with allow_pickle
        kinds = {"quantized": value.is_quantized, "meta": value.is_meta, "nested": value.is_nested}
        return f"{next((kind for kind, is_it in kinds.items() if is_it), 'sparse')} tensor"
    return f"numpy array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _check_finite(model):
    bad = {}
    for name, value in model.items():
        value = torch.as_tensor(value)
        if value.dtype in FLOATS and not value.isfinite().all():
            bad[name] = f"{(~value.isfinite()).sum()} of {value.numel()} values of {_printable(name)}"
    if bad:
        more = f", and some of {len(bad) - 1} other tensors" if len(bad) > 1 else ""
        raise formats.Unreadable(
            f"the weights diverged: {next(iter(bad.values()))} are not finite{more}. Use an earlier checkpoint"
        )
