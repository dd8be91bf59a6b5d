"""Compares the names and number types of a file's weights with those of a model."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from fvcore.common.checkpoint import _strip_prefix_if_present
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64)
_WRAPPERS = ("module.", "model.", "_orig_mod.")  # (Distributed)DataParallel, Lightning modules, torch.compile


def strip_wrappers(weights: "OrderedDict[str, Any]", fits: Callable[[Collection[str]], bool]) -> None:
    """Remove what wrappers of a model put before all names, until the names fit (in place).

    Args:
        weights: a state dict, also with the format versions of its modules.
        fits: whether these are names of the model.
    """
    while not fits(weights):
        prefix = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in weights)), None)
        if prefix is None:
            return
        _strip_prefix_if_present(weights, prefix)


def differing_types(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe the weights whose numbers are of another kind than the model's: loading would change their values.

    Floating-point numbers are one kind in all precisions, without float8, and integers are one; an average of
    checkpoints may also have averaged the counters of batch norms.
    """
    return [
        f"{name} is {weights[name].dtype} in the file and {value.dtype} in the model"
        for name, value in expected.items()
        if name in weights and not _is_same_kind(weights[name].dtype, value.dtype)
        if not (name.endswith("num_batches_tracked") and weights[name].dtype in FLOATS)
    ]


def _is_same_kind(a: torch.dtype, b: torch.dtype) -> bool:
    return a == b or any(a in kind and b in kind for kind in (FLOATS, _INTEGERS))
