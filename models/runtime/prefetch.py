"""Computes the next items of an iterator while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield the items; a thread computes up to `depth` of them ahead.

    An error of `items` is raised in its place. Close the generator where the items may not be used up: it returns when
    the thread has ended.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        ahead = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]
