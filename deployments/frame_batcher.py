"""Puts frames of several sessions into one batch: plain asyncio, earliest deadline first. Knows no model and no Ray."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    A part-full batch waits `wait_s` for company. A request whose caller was cancelled is dropped before its next batch.
    An error of `compute` reaches every caller that had items in the batch, and nobody else.
    """

    def __init__(
        self, compute: Callable[[list[Item]], Awaitable[list[Result]]], batch_size: int, wait_s: float
    ) -> None:
        self._compute = compute
        self.batch_size = batch_size
        self.wait_s = wait_s
        self._heap: list[tuple[float, int, _Request[Item]]] = []
        self._order = itertools.count()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.batches = self.batched_items = self.shared_batches = 0  # shared: items of more than one caller

    async def submit(self, items: list[Item], deadline_s: float, caller: str = "") -> Batched[Result]:
        """Results of all items. `deadline_s` is any clock, the same for all callers: smaller is more urgent."""
        if not items:
            return Batched([], 0.0, 0.0, 0.0)
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        request: _Request[Item] = _Request(list(items), caller, time.perf_counter(), loop.create_future())
        heapq.heappush(self._heap, (deadline_s, next(self._order), request))
        self._arrived.set()
        results = await request.future  # cancelling the caller cancels this future: the batcher then drops the request
        wall_s = time.perf_counter() - request.asked_s
        return Batched(results, max(0.0, wall_s - request.compute_s), request.compute_s, request.busy_s)

    def waiting(self) -> int:
        """Items not yet in a batch."""
        return sum(len(r.items) - r.taken for _, _, r in self._heap if not r.future.done())

    async def _run(self) -> None:
        while True:
            self._arrived.clear()
            if not self.waiting():
                self._heap.clear()
                await self._arrived.wait()
            await self._gather()
            parts = self._take()
            if parts:
                await self._run_batch(parts)

    async def _gather(self) -> None:
        """Wait at most wait_s for a full batch."""
        end_s = time.perf_counter() + self.wait_s
        while self.waiting() < self.batch_size and (left_s := end_s - time.perf_counter()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[tuple[_Request[Item], list[Item]]]:
        """Up to batch_size items, the most urgent requests first; a request stays until all its items are taken."""
        parts, room = [], self.batch_size
        while self._heap and room:
            request = self._heap[0][2]
            if request.future.done():  # cancelled, or failed in an earlier batch
                heapq.heappop(self._heap)
                continue
            items = request.items[request.taken : request.taken + room]
            request.taken += len(items)
            room -= len(items)
            parts.append((request, items))
            if request.taken == len(request.items):
                heapq.heappop(self._heap)
        return parts

    async def _run_batch(self, parts: list[tuple[_Request[Item], list[Item]]]) -> None:
        started_s = time.perf_counter()
        self.batches += 1
        self.batched_items += sum(len(items) for _, items in parts)
        self.shared_batches += len({request.caller for request, _ in parts}) > 1
        batch = [item for _, items in parts for item in items]
        try:
            results = await self._compute(batch)
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} items gave {len(results)} results")
        except asyncio.CancelledError:  # the loop is being closed: nobody may wait for ever
            for request, _ in parts:
                request.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever the model raised belongs to the callers
            for request, _ in parts:
                if not request.future.done():
                    request.future.set_exception(error)
            return
        compute_s = time.perf_counter() - started_s
        position = 0
        for request, items in parts:
            request.results += results[position : position + len(items)]
            request.compute_s += compute_s
            request.busy_s += compute_s * len(items) / len(results)
            position += len(items)
            if len(request.results) == len(request.items) and not request.future.done():
                request.future.set_result(request.results)
