"""Prepares items in threads, ahead of who uses them, and puts them into batches."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_WAITING = 4  # batches' worth of items that wait for others of their kind


def prefetch(items: Iterable[T], function: Callable[[T], R], *, workers: int, ahead: int) -> Iterator[R]:
    """Call a function for every item in threads, and yield the results in the order of the items.

    Args:
        items: iterated in a thread of its own, since reading a video takes time as well.
        function: called in ``workers`` threads.
        workers: number of threads.
        ahead: the most items that are being prepared, or wait to be yielded.

    Raises:
        Exception: what ``items`` or ``function`` raises, at the place of the item.
    """
    slots, results = threading.Semaphore(ahead), SimpleQueue[Future[R] | None]()
    is_over = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                slots.acquire()
                if is_over.is_set():
                    return
                results.put(pool.submit(function, item))
        except BaseException as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            results.put(failed)
        results.put(None)

    with ThreadPoolExecutor(workers, "prefetch") as pool:
        producer = threading.Thread(target=produce, name="prefetch-items", daemon=True)
        producer.start()
        try:
            while (future := results.get()) is not None:
                yield future.result()
                slots.release()
        finally:
            is_over.set()
            slots.release()
            producer.join()


def batches(items: Iterable[T], size: int, kind: Callable[[T], Hashable]) -> Iterator[list[T]]:
    """Put items of equal kind together, without waiting for long.

    An item is yielded at the latest when ``4 * size`` items wait, so that results can be put in order again.

    Args:
        items: of any kinds.
        size: items of a batch; those that are left over form smaller ones.
        kind: of an item.
    """
    waiting: dict[Hashable, list[T]] = {}
    count = 0
    for item in items:
        key = kind(item)
        waiting.setdefault(key, []).append(item)
        count += 1
        if len(waiting[key]) < size:
            if count < _WAITING * size:
                continue
            key = next(iter(waiting))  # of the item that waits for the longest time
        batch = waiting.pop(key)
        count -= len(batch)
        yield batch
    yield from waiting.values()


def in_order(results: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Yield results by their numbers 0, 1, 2, ...; each number comes once."""
    waiting: dict[int, R] = {}
    following = 0
    for number, result in results:
        waiting[number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1
