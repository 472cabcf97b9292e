"""Collects frames of several sessions into batches, the earliest deadline first. No Ray imports.

The contents of a batch are chosen at the last moment: on the compute thread, when it becomes free. So urgent frames
never wait behind a batch that was planned earlier, cancelled requests are left out, and the device does not idle while
the event loop hands out the results of the previous batch.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

QUEUED_BATCHES = 2  # submitted to the compute thread at a time: one that runs, and one that follows it without a gap

Run = Callable[[Callable[[], None]], Awaitable[object]]  # runs a function on the compute thread, in order of arrival


@dataclass(slots=True)
class _Request(Generic[Item]):
    """The items of one caller. They may go into several batches."""

    items: list[Item]
    caller: str
    submitted_s: float
    future: asyncio.Future[Any]
    results: list[Any] = field(default_factory=list)
    taken: int = 0  # items that are in a batch
    compute_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class _Batch(Generic[Item, Result]):
    """One call of `compute`: what went into it, its results or its error, and its duration."""

    parts: list[tuple[_Request[Item], int]] = field(default_factory=list)  # requests with their number of items
    results: list[Result] = field(default_factory=list)
    error: Exception | None = None
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Result]):
    """The results in the order of the items, and how many seconds the request waited and computed.

    `busy_s` is the share of the batches' compute time that belongs to these items.
    """

    results: list[Result]
    queue_s: float
    compute_s: float
    busy_s: float


class FrameBatcher(Generic[Item, Result]):
    """Runs `compute(items)` with up to `batch_size` items, taken from the most urgent requests.

    `run` runs a function on the compute thread. When the thread is free, a batch with free places waits up to `wait_s`
    for more items. A request whose caller is cancelled is dropped before its next batch. An error of `compute` is
    raised in every caller with items in that batch, and in no other.
    """

    def __init__(self, compute: Callable[[list[Item]], list[Result]], run: Run, batch_size: int, wait_s: float) -> None:
        self._compute, self._run_on_thread = compute, run
        self.batch_size = batch_size
        self.wait_s = wait_s
        self._heap: list[tuple[float, int, _Request[Item]]] = []
        self._lock = threading.Lock()  # for the heap and the `taken` counts, which the compute thread changes
        self._order = itertools.count()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._queued: set[asyncio.Task[None]] = set()
        self.batches = self.batched_items = self.shared_batches = 0  # shared: with items of more than one caller

    async def submit(self, items: list[Item], deadline_s: float, caller: str = "") -> BatchResult[Result]:
        """The results of all items. deadline_s: on any clock that all callers share; smaller is more urgent."""
        if not items:
            return BatchResult([], 0.0, 0.0, 0.0)
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._submit_batches())
        request: _Request[Item] = _Request(list(items), caller, time.perf_counter(), loop.create_future())
        with self._lock:
            heapq.heappush(self._heap, (deadline_s, next(self._order), request))
        self._arrived.set()
        results = await request.future  # cancelling the caller cancels this future, and so drops the request
        wall_s = time.perf_counter() - request.submitted_s
        return BatchResult(results, max(0.0, wall_s - request.compute_s), request.compute_s, request.busy_s)

    def waiting(self) -> int:
        """The number of items that are not in a batch yet."""
        with self._lock:
            return sum(len(r.items) - r.taken for _, _, r in self._heap if not r.future.done())

    async def _submit_batches(self) -> None:
        """Keep the compute thread busy while items are waiting."""
        while True:
            self._arrived.clear()
            if not self.waiting():
                with self._lock:
                    self._heap.clear()
                await self._arrived.wait()
            if not self._queued:
                await self._wait_for_full_batch()
            task = asyncio.create_task(self._run_batch())
            self._queued.add(task)
            task.add_done_callback(self._queued.discard)
            while len(self._queued) >= QUEUED_BATCHES:
                await asyncio.wait(self._queued, return_when=asyncio.FIRST_COMPLETED)

    async def _wait_for_full_batch(self) -> None:
        """Wait until there are batch_size items, for at most wait_s."""
        end_s = time.perf_counter() + self.wait_s
        while self.waiting() < self.batch_size and (left_s := end_s - time.perf_counter()) > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._arrived.wait()
            except TimeoutError:
                return

    async def _run_batch(self) -> None:
        """One batch, from its turn on the compute thread to the results of its callers."""
        batch: _Batch[Item, Result] = _Batch()
        try:
            await self._run_on_thread(lambda: self._fill_and_compute(batch))
        except asyncio.CancelledError:  # the event loop or the thread is being closed: no caller may wait forever
            if not batch.parts:
                self._take(batch)
            for request, _ in batch.parts:
                request.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the thread accepts no more work
            if not batch.parts:
                self._take(batch)
            batch.error = error
        self._hand_out(batch)

    def _fill_and_compute(self, batch: _Batch[Item, Result]) -> None:
        """On the compute thread: take the most urgent items and compute them."""
        items = self._take(batch)
        if not items:  # the previous batch took them, or they were cancelled
            return
        started_s = time.perf_counter()
        try:
            batch.results = self._compute(items)
            if len(batch.results) != len(items):
                raise RuntimeError(f"a batch of {len(items)} items gave {len(batch.results)} results")
        except Exception as error:  # noqa: BLE001 - any error of the model belongs to the callers
            batch.error = error
        batch.compute_s = time.perf_counter() - started_s

    def _take(self, batch: _Batch[Item, Result]) -> list[Item]:
        """Move up to batch_size items of the most urgent requests into the batch, and return them.

        A request stays in the heap until all its items are taken.
        """
        taken: list[Item] = []
        with self._lock:
            while self._heap and len(taken) < self.batch_size:
                request = self._heap[0][2]
                if request.future.done():  # cancelled, or failed in an earlier batch
                    heapq.heappop(self._heap)
                    continue
                items = request.items[request.taken : request.taken + self.batch_size - len(taken)]
                request.taken += len(items)
                taken += items
                batch.parts.append((request, len(items)))
                if request.taken == len(request.items):
                    heapq.heappop(self._heap)
        return taken

    def _hand_out(self, batch: _Batch[Item, Result]) -> None:
        """Give the callers their results or the error, and count the batch."""
        if not batch.parts:
            return
        total = sum(count for _, count in batch.parts)
        self.batches += 1
        self.batched_items += total
        self.shared_batches += len({request.caller for request, _ in batch.parts}) > 1
        position = 0
        for request, count in batch.parts:
            if request.future.done():
                pass  # cancelled, or failed in an earlier batch
            elif batch.error is not None:
                request.future.set_exception(batch.error)
            else:
                request.results += batch.results[position : position + count]
                request.compute_s += batch.compute_s
                request.busy_s += batch.compute_s * count / total
                if len(request.results) == len(request.items):
                    request.future.set_result(request.results)
            position += count
