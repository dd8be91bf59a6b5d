"""The weight alpha of the positive class (section 3.1)."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retina_plugin.losses.fused import Weights

Alpha = float | Sequence[float] | Tensor | None


def apply_alpha(loss: Tensor, is_class: Tensor, alpha: Alpha) -> Tensor:
    """Multiply a loss (..., K) by alpha_t: alpha where ``is_class`` is true, 1 - alpha elsewhere (section 3.1)."""
    if alpha is None:
        return loss
    positive, negative = alpha_weights(alpha, loss)
    return torch.where(is_class, positive * loss, negative * loss)


def alpha_weights(alpha: Alpha, like: Tensor) -> Weights:
    """Return the weights of positives and negatives for logits or losses ``like`` (..., K).

    The range of an alpha that is a tensor is not checked, as that would synchronize a GPU with the host.
    """
    if alpha is None:
        return 1.0, 1.0
    if not isinstance(alpha, Tensor):
        check_alpha(alpha)
    if isinstance(alpha, numbers.Real):
        return float(alpha), 1.0 - float(alpha)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    alpha = torch.as_tensor(alpha, dtype=dtype, device=like.device)
    if alpha.shape not in ((), like.shape[-1:]):
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}: give one number, or one for each of {like.shape[-1]} classes"
        )
    alpha = alpha.expand(like.shape[-1]).contiguous()
    return alpha, 1 - alpha


def check_alpha(alpha: Alpha) -> None:
    """Raise ``ValueError`` unless alpha is None, a number in [0, 1] or a sequence or tensor of such numbers."""
    if alpha is None:
        return
    # Numbers make no tensor: they are checked at every step, also under torch.compile.
    values: Any = alpha.flatten().tolist() if isinstance(alpha, (Tensor, np.ndarray)) else alpha
    weights: list[Any] = [values] if isinstance(values, numbers.Real) else list(values)
    wrong = [weight for weight in weights if not 0 <= weight <= 1]
    if wrong:
        raise ValueError(
            f"alpha weighs the positive class and lies in [0, 1], got {', '.join(map(str, wrong))} "
            "(off is None, and -1.0 in a configuration)"
        )
