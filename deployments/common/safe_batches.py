"""Computes batches so that one failure costs little. No Ray imports.

A computation may be begun, and its results waited for later, so that a device has its next batch before it is done.
Out of memory: the batch is halved and computed again, and later batches stay that small for a while. Any other error:
the items that cause it are found by bisection and fail alone. A lost device is not bisected, since nothing works on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from models.errors import BusyError
from models.runtime.device_errors import is_device_lost, is_out_of_memory
from models.runtime.gpu_memory import empty_device_cache

log = logging.getLogger("ray.serve")

Item = TypeVar("Item")
Result = TypeVar("Result")

LIMIT_S = 600.0  # then a batch of twice the size is tried again: another process may have taken the memory


Computed = list[Result] | Callable[[], list[Result]]  # results, or a function that waits for them


class SafeBatches(Generic[Item, Result]):
    """`compute(items)` → a result per item, or the error of that item.

    compute: may return a function that waits for the results. name: of the stage, for messages. on_limit(items): called
    on the compute thread when memory limits the batches.
    """

    def __init__(self, name: str, compute: Callable[[list[Item]], Computed[Result]], on_limit: Callable[[int], None]):
        self._name, self._compute, self._on_limit = name, compute, on_limit
        self._limit: int | None = None
        self._limited_s = 0.0  # when the limit was set, by time.monotonic

    def size(self, batch_size: int) -> int:
        """The most items that the next batch may have, at most `batch_size`."""
        if self._limit is not None and time.monotonic() - self._limited_s > LIMIT_S:
            self._limit, self._limited_s = 2 * self._limit, time.monotonic()
        if self._limit is not None and self._limit >= batch_size:
            self._limit = None
        return batch_size if self._limit is None else self._limit

    def reset(self) -> None:
        """Forget the limit, after the engine has changed."""
        self._limit = None

    def compute(self, items: list[Item]) -> list[Result | Exception]:
        """The results in the order of the items. Raises the error of a lost device."""
        return self.start(items).results()

    def start(self, items: list[Item]) -> StartedBatch[Item, Result]:
        """Begin to compute. Errors are those of `results()`."""
        try:
            begun = self._compute(items)
        except Exception as error:  # noqa: BLE001 raised by `results()`
            # the traceback holds the tensors of the failed call
            failed = error.with_traceback(None) if is_out_of_memory(error) else error

            def fail() -> list[Result]:
                raise failed

            return StartedBatch(self, items, fail, runs=False)
        return StartedBatch(self, items, begun, runs=callable(begun))

    def finish(self, items: list[Item], begun: Computed[Result]) -> list[Result | Exception]:
        """What `compute` does with what the engine returned."""
        try:
            results = begun() if callable(begun) else begun
        except Exception as error:
            if is_device_lost(error):
                raise
            no_memory = is_out_of_memory(error)
            if len(items) == 1 and not no_memory:
                return [error]
        else:
            if len(results) != len(items):
                count = RuntimeError(f"a batch of {len(items)} items gave {len(results)} results")
                return [count for _ in items]
            return list(results)
        # outside `except`: the traceback of the error held the tensors of the failed batch
        if no_memory:
            self._halve(len(items))
            if len(items) == 1:
                return [BusyError(f"{self._name} has too little memory for one frame.", "Try again in a few seconds.")]
        half = (len(items) + 1) // 2
        return self.compute(items[:half]) + self.compute(items[half:])

    def _halve(self, size: int) -> None:
        """After a batch of `size` items did not fit."""
        self._limit, self._limited_s = max(1, size // 2), time.monotonic()
        log.warning(
            "%s: a batch of %d did not fit into memory; batches have at most %d now", self._name, size, self._limit
        )
        self._on_limit(self._limit)
        empty_device_cache()


class StartedBatch(Generic[Item, Result]):
    """A batch whose computation has begun. runs: its results may have to be waited for."""

    def __init__(
        self, batches: SafeBatches[Item, Result], items: list[Item], begun: Computed[Result], runs: bool
    ) -> None:
        self._batches, self._items, self._begun, self.runs = batches, items, begun, runs

    def wait_for_last_part(self) -> None:
        """Until it is time to start the next batch, where the engine tells: its function has this method, too."""
        getattr(self._begun, "wait_for_last_part", bool)()

    def results(self) -> list[Result | Exception]:
        """The results in the order of the items. Raises the error of a lost device."""
        return self._batches.finish(self._items, self._begun)
