"""models.runtime.prefetch: order, errors, and how far it reads ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from models.runtime.prefetch import prefetched


def test_the_next_item_is_computed_while_the_present_one_is_used() -> None:
    second, third = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2
        third.set()
        yield 3

    with closing(prefetched(items(), 1)) as ahead:
        assert next(ahead) == 1
        assert second.wait(10) and not third.is_set()  # one ahead, not two
        assert list(ahead) == [2, 3]


def test_an_error_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = prefetched(items(), 3)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_closing_ends_the_thread() -> None:
    threads, read = set(threading.enumerate()), list[int]()
    ahead = prefetched((read.append(k) or k for k in range(100)), 2)  # type: ignore[func-returns-value]
    next(ahead)
    assert set(threading.enumerate()) > threads
    ahead.close()
    assert set(threading.enumerate()) == threads and len(read) <= 3
