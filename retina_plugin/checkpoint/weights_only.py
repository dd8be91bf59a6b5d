"""Writing files that are whole or not there, with contents that can be read without running anything."""

import contextlib
import logging
import os
from collections import OrderedDict

import numpy as np
import torch

from retina_plugin.core.files import UNFINISHED_SUFFIX

_READ_BY_TORCH = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(torch.Tensor, torch.nn.Parameter, torch.dtype, torch.device, torch.Size),
)


def remove_unfinished(folder):
    """Remove what processes that were killed have left in a folder. Only who alone writes there may do this."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.endswith((f".pth{UNFINISHED_SUFFIX}", f"last_checkpoint{UNFINISHED_SUFFIX}")):
                os.remove(os.path.join(folder, name))


def to_weights_only(value, name="checkpoint"):
    """Turn a state into what ``torch.load(weights_only=True)`` reads.

    Containers of any kind become dicts, lists, tuples and sets, numpy's numbers Python's, numpy's arrays tensors;
    tensors stay as they are. Anything else stays, too, with a warning: a checkpoint that takes an effort to read is
    better than none.

    Args:
        value: the state.
        name: of the state, for the warning.
    """
    if type(value) in _READ_BY_TORCH:
        return value
    if isinstance(value, np.floating):  # of which the widest is its own item
        return float(value)
    if isinstance(value, np.generic):
        return to_weights_only(value.item(), name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.as_tensor(value.astype(value.dtype.newbyteorder("=")))
    if isinstance(value, dict):
        return _plain_dict(value, name)
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        items = (to_weights_only(item, f"{name}[{i}]") for i, item in enumerate(value))
        return (set if kind is frozenset else kind)(items)
    for kind in (int, float, str):
        if isinstance(value, kind):  # an enumeration, for example
            return kind(value)
    if not isinstance(value, torch.Tensor):
        logging.getLogger(__name__).warning(
            "%s is a %s.%s, with which the checkpoint is no plain weights: it can be read only with "
            "MODEL.WEIGHTS_ALLOW_PICKLE True. Let state_dict() return numbers, text, tensors and containers of them.",
            *(name, type(value).__module__, type(value).__qualname__),
        )
    return value


def _plain_dict(value, name):
    kind = OrderedDict if isinstance(value, OrderedDict) else dict
    plain = kind(
        (to_weights_only(key, f"a key of {name}"), to_weights_only(item, f"{name}.{key}"))
        for key, item in value.items()
    )
    if kind is OrderedDict and hasattr(value, "_metadata"):  # versions of a module's formats
        plain._metadata = to_weights_only(value._metadata, f"{name}._metadata")
    return plain
