"""Checks the labels of the anchors: their type and shape at every call, their range where that costs little."""

import torch
from torch import Tensor

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Check that labels (...) are integers, one for each row of the logits (..., K).

    Raises:
        TypeError: logits or labels are no tensor, or have another dtype.
        ValueError: another shape, or another device.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() == 0:
        raise TypeError(f"logits must be a float tensor of shape (..., K), got {_describe(logits)}")
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        raise TypeError(f"{_convention(logits)}, got {_describe(labels)}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"{_convention(logits)}, got shape {tuple(labels.shape)}")
    if labels.device != logits.device:
        raise ValueError(f"labels are on {labels.device}, but logits on {logits.device}")


def check_label_range(logits: Tensor, labels: Tensor) -> None:
    """Check that labels (...) lie in -1..K, for logits (..., K) on a CPU; reading a GPU's labels would wait for it.

    Raises:
        ValueError: another label.
    """
    if labels.device.type != "cpu" or labels.numel() == 0:
        return
    lowest, highest = (int(label) for label in labels.aminmax())
    if lowest < -1 or highest > logits.shape[-1]:
        raise ValueError(f"{_convention(logits)}, got {lowest if lowest < -1 else highest}")


def _convention(logits: Tensor) -> str:
    num_classes = logits.shape[-1]
    classes = {0: "no class", 1: "0 the class"}.get(num_classes, f"0..{num_classes - 1} a class")
    return (
        f"labels must be integers of shape {tuple(logits.shape[:-1])} for logits of shape {tuple(logits.shape)}: "
        f"{classes}, {num_classes} background, -1 ignored, never one-hot"
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
