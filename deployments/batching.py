"""Collects frames of several sessions into batches, the most urgent first. No Ray imports.

The contents of a batch are chosen at the last moment: on the compute thread, when it becomes free. So urgent frames
never wait behind a batch that was planned earlier, cancelled requests are left out, and the device does not idle while
the event loop hands out the results of the previous batch. Where `compute` returns before the device is done, the next
batch is started first, shortly before the device needs it, and the results are waited for then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from deployments.common.autoscaling import ReplicaLoad
from deployments.common.safe_batches import Computed, SafeBatches, StartedBatch
from deployments.common.urgency import Urgency

Item = TypeVar("Item")
Result = TypeVar("Result")

FAIR_EVERY, FAIR_WAIT_S = 8, 1.0  # each eighth batch begins with what has waited longest, if that is at least a second
ITEM_SMOOTHING = 0.2  # weight of the latest batch in the time per item
QUEUED_BATCHES = 2  # submitted to the compute thread at a time: one that runs, and one that follows it without a gap

Run = Callable[[Callable[[], None]], Awaitable[object]]  # runs a function on the compute thread, in order of arrival


@dataclass(slots=True, eq=False)
class _Request(Generic[Item]):
    """The items of one caller. They may go into several batches."""

    items: list[Item]
    urgency: Urgency
    caller: str
    submitted_s: float
    future: asyncio.Future[Any]
    served_s: float  # when items of it were taken for the last time
    results: list[Any] = field(default_factory=list)
    taken: int = 0  # items that are in a batch
    compute_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class _Batch(Generic[Item, Result]):
    """One call of `compute`: what went into it, its results or its error, and its duration."""

    parts: list[tuple[_Request[Item], int]] = field(default_factory=list)  # requests with their number of items
    started: StartedBatch[Item, Result] | None = None  # until its results are there
    started_s: float = 0.0
    results: list[Result | Exception] = field(default_factory=list)  # an exception: the error of that item
    error: Exception | None = None  # of all items
    compute_s: float = 0.0  # without the time in which the device computed the previous batch
    handed_out: bool = False


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

    What somebody watches comes before the background, and among those what has the least slack; each FAIR_EVERY-th
    batch begins with what has waited longest, so that everything advances. `run` runs a function on the compute thread.
    When the thread is free, a batch with free places waits up to `wait_s` for more items. A request whose caller is
    cancelled is dropped before its next batch. An item that makes `compute` fail is an error of its request alone; see
    SafeBatches, also for a `compute` that returns a function. name: of the stage, for messages; on_limit: see there.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], Computed[Result]],
        run: Run,
        batch_size: int,
        wait_s: float,
        name: str = "",
        on_limit: Callable[[int], None] = lambda limit: None,
    ) -> None:
        self._run_on_thread, self._safe = run, SafeBatches(name, compute, on_limit)
        self.batch_size = batch_size
        self.wait_s = wait_s
        self._requests: list[_Request[Item]] = []  # in the order of their arrival
        self._lock = threading.Lock()  # for the requests and their `taken` counts, which the compute thread changes
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._queued: set[asyncio.Task[None]] = set()  # of batches that have not been started
        self._running: set[asyncio.Task[None]] = set()  # of batches that have
        self._unfinished: _Batch[Item, Result] | None = None  # the latest batch that runs; for the compute thread
        self._ended_s = 0.0  # when the latest results were there; for the compute thread
        self._begun = 0  # batches, counted on the compute thread
        self._item_s = 0.0  # compute time per item, smoothed
        self._load = ReplicaLoad()
        self.batches = self.batched_items = self.shared_batches = 0  # shared: with items of more than one caller

    def configure(self, batch_size: int, wait_s: float, new_engine: bool) -> None:
        """Change the settings. new_engine: what was learned about its memory is forgotten."""
        self.batch_size, self.wait_s = batch_size, wait_s
        if new_engine:
            self._safe.reset()

    def counts(self) -> dict[str, int]:
        """Batches, their items, and the batches that several callers shared."""
        return {
            "batches": self.batches,
            "batched_frames": self.batched_items,
            "shared_batches": self.shared_batches,
        }

    def load_metrics(self, start_s: float) -> dict[str, float]:
        """For `record_autoscaling_stats`, see deployments/common/autoscaling.py. start_s: what the replica took."""
        now_s = time.perf_counter()
        with self._lock:
            waiting = [request for request in self._requests if not request.future.done()]
        # what was late when it arrived is late here only after `renew_s`: more replicas of this stage would not help it
        live = [
            (r, now_s - r.submitted_s - (r.urgency.slack_s if r.urgency.slack_s > 0 else r.urgency.renew_s))
            for r in waiting
            if not r.urgency.background
        ]
        overdue = sum(len(request.items) - request.taken for request, late_s in live if late_s > 0)
        files = {request.caller or str(id(request)) for request in waiting if request.urgency.background}
        late_s = max((late_s for _, late_s in live), default=0.0)
        return self._load.metrics(self._item_s, overdue, late_s, len(files), start_s)

    async def submit(self, items: list[Item], urgency: Urgency, caller: str = "") -> BatchResult[Result]:
        """The results of all items. Raises the first error of an item."""
        if not items:
            return BatchResult([], 0.0, 0.0, 0.0)
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            self._task, self._loop = loop.create_task(self._submit_batches()), loop
        now_s = time.perf_counter()
        request: _Request[Item] = _Request(list(items), urgency, caller, now_s, loop.create_future(), now_s)
        with self._lock:
            self._requests.append(request)
        self._count(request)
        self._arrived.set()
        results = await request.future  # cancelling the caller cancels this future, and so drops the request
        wall_s = time.perf_counter() - request.submitted_s
        return BatchResult(results, max(0.0, wall_s - request.compute_s), request.compute_s, request.busy_s)

    def waiting(self) -> int:
        """The number of items that are not in a batch yet."""
        with self._lock:
            return sum(len(r.items) - r.taken for r in self._requests if not r.future.done())

    def oldest_s(self) -> float:
        """How long the oldest request has waited with items that are in no batch yet; 0: none waits."""
        with self._lock:
            since_s = [request.submitted_s for request in self._requests if not request.future.done()]
        return time.perf_counter() - min(since_s) if since_s else 0.0

    async def _submit_batches(self) -> None:
        """Keep the compute thread busy while items are waiting."""
        while True:
            self._arrived.clear()
            if not self.waiting():
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
        """Start one batch when it is its turn on the compute thread."""
        batch: _Batch[Item, Result] = _Batch()
        await self._on_thread(batch, self._fill_and_start)
        if batch.started is not None:
            task = asyncio.create_task(self._on_thread(batch, self._finish))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _on_thread(self, batch: _Batch[Item, Result], function: Callable[[_Batch[Item, Result]], None]) -> None:
        """Run the function on the compute thread; an error is that of the batch."""
        try:
            await self._run_on_thread(lambda: function(batch))
        except asyncio.CancelledError:  # the event loop or the thread is being closed: no caller may wait forever
            if not batch.parts:
                self._take(batch)
            for request, _ in batch.parts:
                request.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the device is lost, or the thread accepts no more work
            if not batch.parts:
                self._take(batch)
            batch.error, batch.started = error, None
            self._hand_out(batch)

    def _fill_and_start(self, batch: _Batch[Item, Result]) -> None:
        """On the compute thread: take the most urgent items and start them, then finish the batch before."""
        items = self._take(batch)
        if items:  # else the previous batch took them, or they were cancelled
            batch.started_s = time.perf_counter()
            batch.started = self._safe.start(items)
        previous, self._unfinished = self._unfinished, None
        if previous is not None:
            self._finish(previous)
        if batch.started is None:
            return
        if batch.started.runs:
            self._unfinished = batch
            batch.started.wait_for_last_part()  # so that the next batch is filled as late as possible
        else:
            self._finish(batch)

    def _finish(self, batch: _Batch[Item, Result]) -> None:
        """On the compute thread: wait for the results, once, and have them handed out. Raises if the device is lost."""
        if batch.started is None:
            return
        batch.results = batch.started.results()
        batch.started = None
        ended_s = time.perf_counter()
        batch.compute_s, self._ended_s = ended_s - max(batch.started_s, self._ended_s), ended_s
        self._loop.call_soon_threadsafe(self._hand_out, batch)

    def _take(self, batch: _Batch[Item, Result]) -> list[Item]:
        """Move items of the most urgent requests into the batch, and return them.

        A request stays in the list until all its items are taken.
        """
        taken: list[Item] = []
        size, now_s = self._safe.size(self.batch_size), time.perf_counter()
        with self._lock:
            for request in self._in_order(now_s):
                items = request.items[request.taken : request.taken + size - len(taken)]
                request.taken, request.served_s = request.taken + len(items), now_s
                taken += items
                batch.parts.append((request, len(items)))
                if len(taken) == size:
                    break
            self._requests = [r for r in self._requests if r.taken < len(r.items) and not r.future.done()]
        return taken

    def _in_order(self, now_s: float) -> list[_Request[Item]]:
        """The requests that wait, the most urgent first; of equally urgent ones, the oldest.

        A caller needs its results in order, so a request is as urgent as any later one of its caller.
        """
        waiting = [request for request in self._requests if not request.future.done()]  # else cancelled or failed
        most: dict[str, tuple[bool, float]] = {}
        keys: dict[int, tuple[bool, float]] = {}
        for request in reversed(waiting):
            key = request.urgency.background, request.urgency.left_s(now_s - request.submitted_s)
            if request.caller:
                key = most[request.caller] = min(key, most.get(request.caller, key))
            keys[id(request)] = key
        waiting.sort(key=lambda request: keys[id(request)])
        self._begun += bool(waiting)
        if waiting and self._begun % FAIR_EVERY == 0:
            longest = min(waiting, key=lambda request: request.served_s)
            if now_s - longest.served_s >= FAIR_WAIT_S:
                waiting.remove(longest)
                waiting.insert(0, longest)
        return waiting

    def _hand_out(self, batch: _Batch[Item, Result]) -> None:
        """Give the callers their results or the error, and count the batch."""
        if not batch.parts or batch.handed_out:
            return
        batch.handed_out = True
        total = sum(count for _, count in batch.parts)
        self.batches += 1
        self.batched_items += total
        self.shared_batches += len({request.caller for request, _ in batch.parts}) > 1
        self._item_s += ITEM_SMOOTHING * (batch.compute_s / total - self._item_s)
        position = 0
        for request, count in batch.parts:
            results = batch.results[position : position + count]
            error = batch.error or next((result for result in results if isinstance(result, Exception)), None)
            if request.future.done():
                pass  # cancelled, or failed in an earlier batch
            elif error is not None:
                request.future.set_exception(error)
            else:
                request.results += results
                request.compute_s += batch.compute_s
                request.busy_s += batch.compute_s * count / total
                if len(request.results) == len(request.items):
                    request.future.set_result(request.results)
            position += count
            self._count(request, count)

    def _count(self, request: _Request[Item], made: int = 0) -> None:
        """Count a live request, and the items that have been made for it, for the autoscaling."""
        if not request.urgency.background:
            fps = len(request.items) / request.urgency.renew_s
            self._load.seen(request.caller or str(id(request)), fps, made)


def stacked(rows: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """np.stack, without a copy where the rows follow one another in one array, as those of one batch do."""
    base, size, start = rows[0].base, rows[0].nbytes, _address(rows[0])
    if isinstance(base, np.ndarray) and base.flags.c_contiguous and base.dtype == rows[0].dtype:
        parts = [(row.base is base, row.flags.c_contiguous, row.shape, _address(row)) for row in rows]
        if parts == [(True, True, rows[0].shape, start + k * size) for k in range(len(rows))]:
            first = (start - _address(base)) // base.itemsize
            return base.reshape(-1)[first : first + len(rows) * rows[0].size].reshape(len(rows), *rows[0].shape)
    return np.stack(rows)


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
