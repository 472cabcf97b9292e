"""Puts frames of several sessions into one batch: plain asyncio, earliest deadline first. Knows no model and no Ray.

What goes into a batch is settled at the last moment, on the compute thread, when it becomes free: nothing urgent waits
behind what was chosen earlier, what was cancelled is left out, and the device does not idle while this process hands
the results of the batch before to their callers.
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

from deployments.common.patience import within

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # batches asked of the compute thread at a time: one that runs, and one that begins when it has ended

Run = Callable[[Callable[[], None]], Awaitable[object]]  # runs a function on the compute thread, in order of arrival


@dataclass(slots=True)
class _Request(Generic[Item]):
    """One caller's items; its parts may go into several batches."""

    items: list[Item]
    caller: str
    asked_s: float
    future: asyncio.Future[Any]
    results: list[Any] = field(default_factory=list)
    taken: int = 0
    compute_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class _Batch(Generic[Item, Result]):
    """What one call of `compute` was given, what it returned or raised, and how long it took."""

    parts: list[tuple[_Request[Item], int]] = field(default_factory=list)  # requests, and how many items of each
    results: list[Result] = field(default_factory=list)
    error: Exception | None = None
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Batched(Generic[Result]):
    """The results in the order of the items; seconds spent waiting and in batches.

    `busy_s` is the share of the batches' time that these items account for.
    """

    results: list[Result]
    queue_s: float
    compute_s: float
    busy_s: float


class FrameBatcher(Generic[Item, Result]):
    """Runs `compute(items)` on at most `batch_size` items at a time, taken from the most urgent requests first.

    `run` gives it a thread; one at a time. While the thread is free, a part-full batch waits `wait_s` for company. A
    request whose caller was cancelled is dropped before its next batch. An error of `compute` reaches every caller that
    had items in the batch, and nobody else.
    """

    def __init__(self, compute: Callable[[list[Item]], list[Result]], run: Run, batch_size: int, wait_s: float) -> None:
        self._compute, self._run_there = compute, run
        self.batch_size = batch_size
        self.wait_s = wait_s
        self._heap: list[tuple[float, int, _Request[Item]]] = []
        self._lock = threading.Lock()  # of the heap and of what was taken: the compute thread takes
        self._order = itertools.count()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self.batches = self.batched_items = self.shared_batches = 0  # shared: items of more than one caller

    async def submit(self, items: list[Item], deadline_s: float, caller: str = "") -> Batched[Result]:
        """Results of all items. `deadline_s` is any clock, the same for all callers: smaller is more urgent."""
        if not items:
            return Batched([], 0.0, 0.0, 0.0)
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._keep_busy())
        request: _Request[Item] = _Request(list(items), caller, time.perf_counter(), loop.create_future())
        with self._lock:
            heapq.heappush(self._heap, (deadline_s, next(self._order), request))
        self._arrived.set()
        results = await request.future  # cancelling the caller cancels this future: the batcher then drops the request
        wall_s = time.perf_counter() - request.asked_s
        return Batched(results, max(0.0, wall_s - request.compute_s), request.compute_s, request.busy_s)

    def waiting(self) -> int:
        """Items not yet in a batch."""
        with self._lock:
            return sum(len(r.items) - r.taken for _, _, r in self._heap if not r.future.done())

    async def _keep_busy(self) -> None:
        """Ask the compute thread for batches as long as anything waits."""
        while True:
            self._arrived.clear()
            if not self.waiting():
                with self._lock:
                    self._heap.clear()
                await self._arrived.wait()
            if not self._under_way:
                await self._gather()
            task = asyncio.create_task(self._batch())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            while len(self._under_way) >= AHEAD:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _gather(self) -> None:
        """Wait at most wait_s for a full batch."""
        end_s = time.perf_counter() + self.wait_s
        while self.waiting() < self.batch_size and (left_s := end_s - time.perf_counter()) > 0:
            self._arrived.clear()
            try:
                await within(left_s, self._arrived.wait())
            except TimeoutError:
                return

    async def _batch(self) -> None:
        """One call of `compute`, from its turn on the thread to its callers."""
        batch: _Batch[Item, Result] = _Batch()
        try:
            await self._run_there(lambda: self._fill_and_compute(batch))
        except asyncio.CancelledError:  # the loop or the thread is being closed: nobody may wait for ever
            if not batch.parts:
                self._take(batch)
            for request, _ in batch.parts:
                request.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the thread takes no more work
            if not batch.parts:
                self._take(batch)
            batch.error = error
        self._hand_out(batch)

    def _fill_and_compute(self, batch: _Batch[Item, Result]) -> None:
        """On the compute thread: take what is most urgent now, and compute it."""
        items = self._take(batch)
        if not items:  # the batch before took it all, or it was cancelled
            return
        started_s = time.perf_counter()
        try:
            batch.results = self._compute(items)
            if len(batch.results) != len(items):
                raise RuntimeError(f"a batch of {len(items)} items gave {len(batch.results)} results")
        except Exception as error:  # noqa: BLE001 - whatever the model raised belongs to the callers
            batch.error = error
        batch.compute_s = time.perf_counter() - started_s

    def _take(self, batch: _Batch[Item, Result]) -> list[Item]:
        """Up to batch_size items, the most urgent requests first; a request stays until all its items are taken."""
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
        """Give the callers their results or the error; count."""
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
