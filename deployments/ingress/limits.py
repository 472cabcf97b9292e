"""Places of which there are so many: for uploads, for sockets. Knows nothing of who takes one."""

# no `from __future__ import annotations`: part of what serve.ingress looks at

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.errors import BusyError


class Places:
    """`with places.taken(): …`, as often at a time as `limit()` says. Not thread-safe: one event loop."""

    def __init__(self, limit: Callable[[], int], full: str) -> None:
        """full: the sentence for whoever finds no place."""
        self._limit, self._full = limit, full
        self.count = 0  # that are taken

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Raises BusyError."""
        if self.count >= self._limit():
            raise BusyError(self._full, "Try again in a few seconds.")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
