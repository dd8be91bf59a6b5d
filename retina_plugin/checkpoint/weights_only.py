"""Converts states to what can be read without running any code of a file."""

import logging
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

_READ_BY_TORCH = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(torch.Tensor, torch.nn.Parameter, torch.dtype, torch.device, torch.Size),
)


def to_weights_only(value: Any, name: str = "checkpoint") -> Any:
    """Convert a state to what ``torch.load(weights_only=True)`` reads.

    Containers become dicts, lists, tuples and sets, numpy's numbers Python's, numpy's arrays tensors; tensors stay as
    they are. Other objects stay with a warning: a checkpoint that takes an effort to read is better than none.

    Args:
        value: the state; not changed.
        name: what the warning calls the state.
    """
    if type(value) in _READ_BY_TORCH:
        return value
    if isinstance(value, np.floating):  # the item of numpy's widest float is no Python number
        return float(value)
    if isinstance(value, np.generic):
        return to_weights_only(value.item(), name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.as_tensor(value.astype(value.dtype.newbyteorder("=")))
    if isinstance(value, dict):
        return _convert_dict(value, name)
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind) or kind is set)
        return kind(to_weights_only(item, f"{name}[{i}]") for i, item in enumerate(value))
    for scalar in (int, float, str):
        if isinstance(value, scalar):  # an enumeration, for example
            return scalar(value)
    if not isinstance(value, torch.Tensor):
        logging.getLogger(__name__).warning(
            "%s is a %s.%s: the run can be resumed only with MODEL.WEIGHTS_ALLOW_PICKLE True. Let state_dict() "
            "return numbers, text, tensors and containers of them.",
            *(name, type(value).__module__, type(value).__qualname__),
        )
    return value


def _convert_dict(value: dict, name: str) -> dict:
    kind = OrderedDict if isinstance(value, OrderedDict) else dict
    plain: Any = kind(
        (to_weights_only(key, f"a key of {name}"), to_weights_only(item, f"{name}.{key}"))
        for key, item in value.items()
    )
    if kind is OrderedDict and hasattr(value, "_metadata"):  # format versions of the modules
        plain._metadata = to_weights_only(value._metadata, f"{name}._metadata")
    return plain
