"""Limits on how many things of one kind happen at a time: uploads, WebSockets."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.errors import BusyError


class ConcurrencyLimit:
    """`with limit.acquire(): …` fails at once where `max_count()` are active. For one event loop, not thread-safe."""

    def __init__(self, max_count: Callable[[], int], message: str) -> None:
        """max_count: called each time, because a new config may change it. message: of the BusyError."""
        self._max_count, self._message = max_count, message
        self.active = 0

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Raises BusyError."""
        if self.active >= self._max_count():
            raise BusyError(self._message, "Try again in a few seconds.")
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
