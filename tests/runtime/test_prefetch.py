"""Threads that prepare items ahead, and batches."""

import random
import threading
import time

import pytest

from retina_plugin.runtime.prefetch import batches, in_order, prefetch


def test_results_come_in_order_and_few_items_are_ahead():
    taken, yielded = [], []

    def items():
        for i in range(50):
            taken.append(i)
            assert len(taken) - len(yielded) <= 4 + 2  # those ahead, the one that waits, and the one that is used
            yield i

    def work(i):
        time.sleep(random.random() / 500)
        return -i

    for result in prefetch(items(), work, workers=3, ahead=4):
        yielded.append(result)
    assert yielded == [-i for i in range(50)]


def test_errors_come_at_their_place():
    def items():
        yield from (1, 2)
        raise OSError("of the items")

    results = prefetch(items(), int, workers=2, ahead=2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="of the items"):
        next(results)
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0, 1], lambda i: 1 / i, workers=2, ahead=2))


def test_threads_end_when_nobody_wants_more():
    before = threading.active_count()
    results = prefetch(iter(int, 1), str, workers=2, ahead=3)  # without end
    assert next(results) == "0"
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches(size):
    items = [(i, random.choice("abc")) for i in range(60)]
    waiting, done = 0, []
    found = []
    for batch in batches(items, size, lambda item: item[1]):
        assert len({kind for _, kind in batch}) == 1 and 1 <= len(batch) <= size
        assert [i for i, _ in batch] == sorted(i for i, _ in batch)
        found.append(batch)
        done += [i for i, _ in batch]
        waiting = max(waiting, max(done) + 1 - len(done))
    assert sorted(done) == list(range(60)) and waiting < 4 * size
    assert list(in_order((i, str(i)) for i in done)) == [str(i) for i in range(60)]
