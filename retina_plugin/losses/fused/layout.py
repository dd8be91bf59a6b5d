"""Logits in the order of their memory, whatever their dimensions mean.

(..., K) becomes (O, K, I): what lies around the classes. The head's output in NCHW order, seen by anchor, has
O = N A and I = H W; in channels_last order, or as a plain matrix, it has I = 1.
"""

import math


def dense(logits):
    """The same tensor if its memory has neither gaps nor overlaps, else a contiguous copy."""
    return logits if logits.permute(_memory_order(logits)).is_contiguous() else logits.contiguous()


def as_planes(logits, like):
    """View (..., K) as (O, K, I); ``like`` is the dense tensor whose memory order it has."""
    order = _memory_order(like)
    classes = order.index(like.dim() - 1)
    sizes = [like.shape[d] for d in order]
    return logits.permute(order).view(math.prod(sizes[:classes]), sizes[classes], math.prod(sizes[classes + 1 :]))


def labels_as_planes(labels, like):
    """Order integer labels (...) as the planes of ``like``, (..., K): contiguous (O, I)."""
    order = _memory_order(like)
    classes = order.index(like.dim() - 1)
    outer = math.prod(like.shape[d] for d in order[:classes])
    inner = math.prod(like.shape[d] for d in order[classes + 1 :])
    return labels.permute([d for d in order if d != like.dim() - 1]).reshape(outer, inner)


def _memory_order(tensor):
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
