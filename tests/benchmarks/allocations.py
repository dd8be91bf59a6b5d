"""A benchmark whose implementations allocate what they are told to, for a process of its own."""

import torch

from benchmarks.case import Case, Step

MB = 2**20


def cases(args):
    return [AllocationCase(*args.megabytes)]


class AllocationCase(Case):
    def __init__(self, first, second):
        super().__init__("", "", ("one", "together", "in turn", "pieces", "beside what is there", "in what is there"))
        self.first, self.second = first, second

    def miniature(self):
        return AllocationCase(1, 1)

    def step(self, impl):
        kept = []
        return {
            "one": Step(lambda: _touched(self.first)),
            "together": Step(lambda: [_touched(self.first), _touched(self.second)]),
            "in turn": Step(lambda: [None for size in (self.first, self.second) if _touched(size) is None]),
            # Small pieces come from a heap that keeps its pages when they are freed.
            "pieces": Step(lambda: _pieces(self.first), prepare=lambda: _pieces(self.second)),
            "beside what is there": Step(lambda: _touched(self.first), lambda: kept.append(_touched(self.second))),
            "in what is there": Step(lambda: kept[-1].fill_(2), lambda: kept.append(_touched(self.second))),
        }[impl]


def _touched(megabytes):
    """A tensor whose pages are all resident."""
    return torch.empty(megabytes * MB, dtype=torch.uint8).fill_(1)


def _pieces(megabytes):
    return [torch.ones(2**14) for _ in range(megabytes * MB // 2**16)]
