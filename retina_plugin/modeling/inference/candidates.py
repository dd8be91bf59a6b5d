"""The best pairs of anchor and class of a level (section 4.1, "Inference"), without a score for all the others.

A level of an image has up to 12 million logits, and at most a thousand of them become candidates. Each logit is read
once, where it lies in memory, for the largest of every chunk; only the chunks that can hold a candidate are searched,
and only what is found there gets a score.

H, W cells of the level, A anchors a cell, K classes.
"""

import torch
from torch.nn import functional as F

LONGEST_CHUNK = 512  # logits; longer ones would be read no faster, but leave more to search
SEARCHED_AT_ONCE = 2**19  # logits: a thousand chunks, and what bounds the memory where very many logits are equal


def top_candidates(logits, score_thresh, topk):
    """Find the pairs of anchor and class with the highest scores.

    Args:
        logits: float (H, W, A, K) of one level of one image. It can have its dimensions in any order in memory and is
            not copied, unless it leaves gaps there. A logit that is NaN is never a candidate.
        score_thresh: candidates score above it.
        topk: the most candidates.

    Returns:
        scores: (C,), descending, float32 (float64 for float64 logits).
        index: int64 (C,), where in ``logits.flatten()`` the C candidates are; ascending among equal scores.
    """
    by_stride = sorted(range(4), key=logits.stride, reverse=True)
    in_memory = logits.permute(by_stride)
    chunks = _chunks(in_memory.reshape(-1), topk)
    largest = chunks.amax(dim=1)
    lowest = _lowest_logit(_score_to_reach(largest, score_thresh, topk))

    scores = largest.new_empty(0, dtype=_score_dtype(largest))
    index = torch.empty(0, dtype=torch.int64, device=logits.device)
    promising = (~(largest < lowest)).nonzero().squeeze(1)  # also where the largest is NaN: others may be beside it
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


def unravel(index, shape):
    """Coordinates, one int64 tensor a dimension, of flat indices into ``shape``.

    Unlike ``torch.unravel_index``, it sends nothing to a GPU.
    """
    coordinates = []
    for size in reversed(shape):
        coordinates.append(index % size)
        index = index // size
    return coordinates[::-1]


def _chunks(memory, topk):
    # Several times as many chunks as candidates, so that those that hold one are a small part of the level.
    longest = min(LONGEST_CHUNK, max(1, len(memory) // (8 * (topk + 1))))
    return memory.view(-1, next(n for n in range(longest, 0, -1) if len(memory) % n == 0))


def _score_to_reach(largest, score_thresh, topk):
    """A score (0-dim) that no candidate is below, given the largest logit of every chunk."""
    if len(largest) <= topk:
        return largest.new_full((), score_thresh, dtype=_score_dtype(largest))
    # So many logits, one in each of as many chunks, have at least this score: so do the topk best of all.
    best = largest.masked_fill(largest.isnan(), -torch.inf).topk(topk + 1).values
    return _scores(best)[-1].clamp(min=score_thresh)


def _lowest_logit(score):
    # A hair lower than the inverse, so that no rounding, here or of the score, hides a candidate.
    return (score * (1 - 1e-5)).clamp(0, 1).logit()


def _best(scores, index, topk):
    by_index = index.argsort()
    scores, order = scores[by_index].sort(descending=True, stable=True)
    return scores[:topk], index[by_index[order[:topk]]]


def _scores(logits):
    # On a CPU, those that do not fill a vector register are rounded differently. Padded, equal logits score equally.
    padded = F.pad(logits.to(_score_dtype(logits)), (0, -len(logits) % 64))
    return padded.sigmoid()[: len(logits)]


def _score_dtype(logits):
    return torch.promote_types(logits.dtype, torch.float32)
