"""The candidates of a level equal a plain implementation: a score for every logit, then a stable sort."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from retina_plugin.modeling.inference import candidates
from retina_plugin.modeling.inference.candidates import top_candidates, unravel

SHAPES = [(4, 6, 3, 20), (5, 7, 2, 3), (20, 25, 3, 20), (13, 1, 1, 1), (1, 1, 1, 1), (0, 3, 2, 5)]  # (H, W, A, K)
TOPK = [0, 1, 7, 100, 10**6]


def sprinkled(shape, probability, *values):
    logits = torch.randn(shape) * 2 - 1
    for value in values:
        logits[torch.rand(shape) < probability] = value
    return logits


LOGITS = {
    "random": lambda shape: torch.randn(shape) * 2 - 1,
    "double": lambda shape: torch.randn(shape, dtype=torch.float64) * 2 - 1,
    "coarse": lambda shape: (torch.randn(shape) * 2).round() / 2,
    "bfloat16": lambda shape: (torch.randn(shape) * 2).bfloat16(),
    "half": lambda shape: (torch.randn(shape) * 2).half(),
    "neighboring floats": lambda shape: (torch.tensor(0.7).view(torch.int32) + torch.randint(9, shape).int()).view(
        torch.float32
    ),
    "scores of 1": lambda shape: torch.randn(shape) * 4 + 17,
    "scores of 0": lambda shape: torch.randn(shape) * 8 - 95,
    "one value": lambda shape: torch.full(shape, 0.3),
    "infinities": lambda shape: sprinkled(shape, 0.1, torch.inf, -torch.inf),
    "much nan": lambda shape: sprinkled(shape, 0.1, torch.nan, torch.inf),
    "little nan": lambda shape: sprinkled(shape, 3e-4, torch.nan),
    "nothing but nan": lambda shape: torch.full(shape, torch.nan),
}


def plain_candidates(logits, score_thresh, topk):
    logits = logits.flatten().to(torch.promote_types(logits.dtype, torch.float32))
    # In pieces for one thread, the last one filled up: so every score is rounded the way that most are.
    pieces = F.pad(logits, (0, -len(logits) % 64)).split(4096)
    scores = torch.cat([piece.sigmoid() for piece in pieces])[: len(logits)]
    index = (scores > score_thresh).nonzero().squeeze(1)
    scores, order = scores[index].sort(descending=True, stable=True)
    return scores[:topk], index[order[:topk]]


def assert_same_candidates(logits, score_thresh, topk):
    scores, index = top_candidates(logits, score_thresh, topk)
    expected_scores, expected_index = plain_candidates(logits, score_thresh, topk)
    assert torch.equal(index, expected_index)
    assert scores.dtype == expected_scores.dtype
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize("score_thresh", [-1.0, 0.0, 1e-39, 0.05, 0.5, 0.999, 1.0, 1.5, "one of the scores"])
@pytest.mark.parametrize("kind", LOGITS)
def test_equal_the_plain_implementation_bit_for_bit(kind, score_thresh):
    for shape in SHAPES:
        logits = LOGITS[kind](shape)
        threshold = score_thresh
        if score_thresh == "one of the scores":  # which itself does not pass
            every_score, _ = plain_candidates(logits, -1, logits.numel())
            threshold = every_score[len(every_score) // 100].item() if len(every_score) else 0.3
        for topk in TOPK:
            assert_same_candidates(logits, threshold, topk)


@pytest.mark.parametrize("order", permutations(range(4)))
def test_any_order_of_dimensions_in_memory(order):
    shape = (6, 10, 3, 20)
    in_memory = (torch.randn([shape[dim] for dim in order]) * 2).round() / 2
    logits = in_memory.permute([order.index(dim) for dim in range(4)])
    assert logits.shape == shape
    for topk in (7, 100):
        assert_same_candidates(logits, 0.5, topk)


GAPS = {
    "slice of every dimension": lambda: torch.randn(8, 12, 6, 22)[1:-1, 1:-1, ::2, :-2],
    "image of a batch that is innermost": lambda: torch.randn(6, 10, 3, 20, 2)[..., 1],
    "channels of an NCHW tensor": lambda: torch.randn(3, 23, 6, 10)[:, 3:].permute(2, 3, 0, 1),
    "one anchor's logits for all": lambda: torch.randn(6, 10, 1, 20).expand(-1, -1, 3, -1),
}


@pytest.mark.parametrize("kind", GAPS)
def test_gaps_in_memory(kind):
    logits = GAPS[kind]()
    assert logits.shape == (6, 10, 3, 20)
    for topk in (7, 100, 10**6):
        assert_same_candidates(logits, 0.5, topk)


def test_equal_scores_in_several_searches(monkeypatch):
    monkeypatch.setattr(candidates, "SEARCHED_AT_ONCE", 2**12)
    in_memory = torch.randint(3, (3, 20, 30, 32)) * 20.0  # scores of 0.5, 1 and 1
    in_memory[:, :, :25] = 0  # so that the first places with score 1 are far from the first in memory
    logits = in_memory.permute(2, 3, 0, 1)
    for topk in (30, 1000, int((logits > 0).sum()) + 10):
        assert_same_candidates(logits, 0.05, topk)


def test_a_score_depends_only_on_its_logit():
    logits = torch.randn(1, 1, 1, 1000) * 3
    scores, index = top_candidates(logits, -1, 1000)
    score_of = torch.empty(1000).index_copy_(0, index, scores)
    for number in range(1, 1000, 9):
        scores, index = top_candidates(logits[..., :number], -1, 1000)
        assert torch.equal(scores, score_of[index])


def test_gradient_of_the_scores():
    logits = torch.randn(5, 7, 2, 3, dtype=torch.float64, requires_grad=True)
    scores, index = top_candidates(logits, 0.5, 20)
    scores.sum().backward()
    expected = torch.zeros(logits.numel(), dtype=torch.float64)
    expected[index] = (scores * (1 - scores)).detach()
    torch.testing.assert_close(logits.grad.flatten(), expected)


def test_unravel():
    shape = (3, 1, 7, 5)
    index = torch.randperm(3 * 7 * 5)
    for coordinate, expected in zip(unravel(index, shape), np.unravel_index(index.numpy(), shape), strict=True):
        assert coordinate.tolist() == expected.tolist()
