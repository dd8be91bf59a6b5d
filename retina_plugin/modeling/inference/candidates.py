"""Finds the pairs of anchor and class with the highest scores of a level (section 4.1, "Inference").

A level of an image has up to 12 million logits, and at most a thousand of them become candidates. Each logit is read
once, in memory order, for the maximum of its chunk; only chunks that can contain a candidate are searched, and only
the logits found there get a score. The chunks depend on sizes and values, which a tracer would take for constants: it
sees the plain formulation.

H x W cells of the level, A anchors a cell, K classes, C candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST_CHUNK = 512  # logits; longer chunks are read no faster, and leave more to search
SEARCHED_AT_ONCE = 2**19  # logits, a thousand chunks; bounds the memory if very many logits are equal


def top_candidates(logits: Tensor, score_thresh: float, topk: int) -> tuple[Tensor, Tensor]:
    """Find the pairs of anchor and class with the highest scores.

    Args:
        logits: float (H, W, A, K) of one level of one image, with the dimensions in any order in memory; copied only if
            not dense in memory. A NaN is never a candidate.
        score_thresh: candidates have a higher score.
        topk: maximum number of candidates.

    Returns:
        scores: (C,), descending, float32 (float64 for float64 logits).
        index: int64 (C,), positions of the candidates in ``logits.flatten()``; ascending among equal scores.
    """
    if torch.jit.is_tracing():
        return _plain_top_candidates(logits, score_thresh, topk)
    by_stride = sorted(range(4), key=logits.stride, reverse=True)
    in_memory = logits.permute(by_stride)
    chunks = _chunks(in_memory.reshape(-1), topk)
    largest = chunks.amax(dim=1)
    lowest = _lowest_logit(_score_to_reach(largest, score_thresh, topk))

    scores = largest.new_empty(0, dtype=_score_dtype(largest))
    index = torch.empty(0, dtype=torch.int64, device=logits.device)
    promising = (~(largest < lowest)).nonzero().squeeze(1)  # a maximum of NaN can hide other logits of the chunk
    for some in promising.split(SEARCHED_AT_ONCE // chunks.shape[1]):
        row, column = (chunks[some] >= lowest).nonzero(as_tuple=True)
        row = some[row]
        found = _scores(chunks[row, column])
        passes = (found > score_thresh).nonzero().squeeze(1)
        place = unravel((row * chunks.shape[1] + column)[passes], in_memory.shape)
        h, w, a, k = (place[by_stride.index(dim)] for dim in range(4))
        _, W, A, K = logits.shape
        index = torch.cat([index, ((h * W + w) * A + a) * K + k])
        scores, index = _best(torch.cat([scores, found[passes]]), index, topk)
    return scores, index


def _plain_top_candidates(logits: Tensor, score_thresh: float, topk: int) -> tuple[Tensor, Tensor]:
    scores = _scores(logits.reshape(-1))
    index = (scores > score_thresh).nonzero().squeeze(1)
    # A sort in ONNX is stable without being asked, and cannot be asked.
    stable = {} if torch.onnx.is_in_onnx_export() else {"stable": True}
    scores, order = scores[index].sort(descending=True, **stable)
    return scores[:topk], index[order[:topk]]


def unravel(index: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """Convert flat indices into ``shape`` to coordinates, one int64 tensor a dimension.

    Unlike ``torch.unravel_index``, it copies nothing from the host to a GPU.
    """
    coordinates = []
    for size in reversed(shape):
        coordinates.append(index % size)
        index = index // size
    return coordinates[::-1]


def _chunks(memory: Tensor, topk: int) -> Tensor:
    # Several times as many chunks as candidates: chunks that contain a candidate are then a small part of the level.
    longest = min(LONGEST_CHUNK, max(1, len(memory) // (8 * (topk + 1))))
    return memory.view(-1, next(n for n in range(longest, 0, -1) if len(memory) % n == 0))


def _score_to_reach(largest: Tensor, score_thresh: float, topk: int) -> Tensor:
    """Lower bound (0-dim) of the scores of all candidates, from the largest logit of every chunk."""
    if len(largest) <= topk:
        return largest.new_full((), score_thresh, dtype=_score_dtype(largest))
    # At least topk + 1 logits, one in each of as many chunks, reach this score, and so do the topk best of all.
    best = largest.masked_fill(largest.isnan(), -torch.inf).topk(topk + 1).values
    return _scores(best)[-1].clamp(min=score_thresh)


def _lowest_logit(score: Tensor) -> Tensor:
    # Slightly below the inverse sigmoid: rounding, here or in the score, must not hide a candidate.
    return (score * (1 - 1e-5)).clamp(0, 1).logit()


def _best(scores: Tensor, index: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    by_index = index.argsort()
    scores, order = scores[by_index].sort(descending=True, stable=True)
    return scores[:topk], index[by_index[order[:topk]]]


def _scores(logits: Tensor) -> Tensor:
    # A CPU rounds elements that do not fill a vector register differently. With padding, equal logits score equally.
    return F.pad(logits.to(_score_dtype(logits)), (0, 64)).sigmoid()[:-64]


def _score_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
