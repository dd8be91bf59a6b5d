"""Views of logits in the order of their memory.

(..., K) becomes (O, K, I): the dimensions outside and inside the class dimension. The head's output in NCHW order, seen
by anchor, has O = N A and I = H W; in channels_last order, or as a plain matrix, I = 1.
"""

import math

from torch import Tensor


def dense(logits: Tensor) -> Tensor:
    """Return the same tensor if its memory has neither gaps nor overlaps, else a contiguous copy."""
    return logits if logits.permute(_memory_order(logits)).is_contiguous() else logits.contiguous()


def as_planes(logits: Tensor, like: Tensor) -> Tensor:
    """View (..., K) as (O, K, I); ``like`` is the dense tensor whose memory order it has."""
    order = _memory_order(like)
    classes = order.index(like.dim() - 1)
    sizes = [like.shape[d] for d in order]
    return logits.permute(order).view(math.prod(sizes[:classes]), sizes[classes], math.prod(sizes[classes + 1 :]))


def labels_as_planes(labels: Tensor, like: Tensor) -> Tensor:
    """Order integer labels (...) as the planes of ``like``, (..., K): contiguous (O, I)."""
    outer, _, inner = as_planes(like, like).shape
    return labels.permute([d for d in _memory_order(like) if d != like.dim() - 1]).reshape(outer, inner)


def _memory_order(tensor: Tensor) -> list[int]:
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
