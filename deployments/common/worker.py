"""Compute threads of a stage: they run functions in order, and notice when a function hangs or its device is lost."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import queue
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from deployments.common.errors import ReplicaFailedError
from models.runtime.device_errors import is_device_lost

P = ParamSpec("P")
T = TypeVar("T")

HUNG_AFTER_S, LOAD_LIMIT_S = 8.0, 600.0  # until a config sets them
FIRST_CALL_S = 10.0  # least limit of the first call of a function, which may load something
FIRST_UNIT_S = 2.0  # for a first call of `run_sized`
HUNG_FACTOR = 4.0
KEPT_DURATIONS = 100
END_S = 5.0  # in which a replica whose device is lost ends itself


@dataclass(frozen=True, slots=True)
class WorkResult(Generic[T]):
    """The return value of a function that a worker ran, with its times by `time.perf_counter`."""

    value: T
    submitted_s: float
    started_s: float
    ended_s: float

    @property
    def queue_s(self) -> float:
        """How long the call waited for the thread."""
        return self.started_s - self.submitted_s

    @property
    def compute_s(self) -> float:
        """How long the function ran."""
        return self.ended_s - self.started_s


class DaemonThreads(Executor):
    """Threads that run functions in order of arrival. Unlike those of ThreadPoolExecutor they never delay an exit."""

    def __init__(self, name: str, count: int) -> None:
        self.count = count
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = weakref.finalize(self, _end_threads, self._jobs, self._threads)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                future.set_exception(error)

        self._jobs.put(run)
        if len(self._threads) < self.count:
            name = f"{self._name}_{len(self._threads)}"
            self._threads.append(threading.Thread(target=_run_jobs, args=(self._jobs,), name=name, daemon=True))
            self._threads[-1].start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._ended()

    @property
    def waiting(self) -> int:
        """Functions that no thread has begun."""
        return self._jobs.qsize()

    def dead(self) -> list[str]:
        """Names of threads that have ended although they should run."""
        return [thread.name for thread in self._threads if not thread.is_alive()]


def _run_jobs(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # else the thread would keep the results of its last job while it waits


def _end_threads(jobs: queue.SimpleQueue[Callable[[], None] | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)


class RecentDurations:
    """How long recent calls took, and so how long another one may take."""

    def __init__(self) -> None:
        self._recent_s: deque[float] = deque(maxlen=KEPT_DURATIONS)

    def add(self, duration_s: float) -> None:
        self._recent_s.append(duration_s)

    def limit_s(self, least_s: float, size: float = 1.0) -> float:
        """A call that takes longer hangs: HUNG_FACTOR times the 99th percentile, and at least least_s.

        size: of the call, where the durations are per unit.
        """
        ordered_s = sorted(self._recent_s)
        if not ordered_s:
            return least_s
        return max(least_s, HUNG_FACTOR * size * ordered_s[math.ceil(0.99 * len(ordered_s)) - 1])


@dataclass(slots=True)
class _Job:
    """A function that runs now."""

    name: str
    started_s: float  # by `time.monotonic`
    progress_s: float  # when it started, or last reported progress
    limit_s: float | None  # from then on; None: as usual for this function
    size: float  # the usual limit is per unit of it


class Worker:
    """One thread that runs functions in order of arrival, so that the event loop can answer health checks meanwhile.

    Use more `threads` only for functions that wait for a server instead of computing.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._threads = DaemonThreads(name, threads)
        self._running: dict[int, _Job] = {}  # by thread
        self._waiting_since_s: dict[object, float] = {}  # of calls that wait for the thread; by `time.monotonic`
        self._durations: defaultdict[str, RecentDurations] = defaultdict(RecentDurations)
        self._device_error = ""
        self.hung_after_s = HUNG_AFTER_S  # least limit of a call
        self.loading_s = 0.0  # how long the engine took to load and warm up

    def set_limits(self, hung_after_s: float, load_limit_s: float) -> None:
        """How long calls may take. Calls of a server end by the engine's own timeouts, so they get the longer one."""
        self.hung_after_s = hung_after_s if self._threads.count == 1 else load_limit_s

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> WorkResult[T]:
        """Run the function on the thread. A call that is cancelled while it waits for the thread never runs.

        Raises what the function raises, and ReplicaFailedError where that means that the device is lost.
        """
        return await self._submit(functools.partial(function, *args, **kwargs))

    async def run_sized(
        self, size: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> WorkResult[T]:
        """As `run`, for a function whose calls take as long as they are large, in any unit."""
        return await self._submit(functools.partial(function, *args, **kwargs), size=size)

    async def run_long(
        self, limit_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> WorkResult[T]:
        """As `run`, for a function that may take `limit_s` from its start, or from its last call of `progressed`."""
        return await self._submit(functools.partial(function, *args, **kwargs), limit_s)

    async def _submit(
        self, work: functools.partial[T], limit_s: float | None = None, size: float = 1.0
    ) -> WorkResult[T]:
        submitted_s = time.perf_counter()
        if self._device_error:  # the replica is about to end, and its callers then try another one
            await asyncio.sleep(END_S)
            raise ReplicaFailedError.of(self._device_error)

        ticket = object()
        self._waiting_since_s[ticket] = time.monotonic()

        def timed() -> WorkResult[T]:
            self._waiting_since_s.pop(ticket, None)
            now_s = time.monotonic()
            job = self._running[threading.get_ident()] = _Job(_name_of(work), now_s, now_s, limit_s, size)
            started_s = time.perf_counter()
            try:
                value = self.guard(work)()
            finally:
                del self._running[threading.get_ident()]
            ended_s = time.perf_counter()
            self._durations[job.name].add((ended_s - started_s) / size)
            return WorkResult(value, submitted_s, started_s, ended_s)

        context = contextvars.copy_context()  # the request id and the session id, for logs
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, timed)
        finally:
            self._waiting_since_s.pop(ticket, None)

    def waiting(self) -> int:
        """The number of calls that wait for the thread."""
        return self._threads.waiting

    def oldest_s(self) -> float:
        """How long the oldest call has waited for the thread; 0: none waits."""
        since_s = list(self._waiting_since_s.values())
        return time.monotonic() - min(since_s) if since_s else 0.0

    def longest_s(self) -> float:
        """How long the longest of the calls that run now has run; 0: none runs."""
        started_s = [job.started_s for job in list(self._running.values())]
        return time.monotonic() - min(started_s) if started_s else 0.0

    def progressed(self) -> None:
        """Called on the thread by a function that takes long: it does not hang."""
        if job := self._running.get(threading.get_ident()):
            job.progress_s = time.monotonic()

    def guard(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, but it raises ReplicaFailedError, and `fault` reports it, when the device is lost.

        `run` does that for its functions. Use it for a part of such a function that catches errors, or that calls
        another one several times: each call of the guarded one is a progress.
        """

        @functools.wraps(function, assigned=("__qualname__",), updated=())
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            self.progressed()
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if isinstance(error, ReplicaFailedError) or not is_device_lost(error):  # guarded twice
                    raise
                self._device_error = f"the device is lost: {str(error).splitlines()[0]}"
                raise ReplicaFailedError.of(self._device_error) from error

        return guarded

    def fault(self) -> str:
        """Why this worker can do no more work, or "".

        The device is lost, a thread has ended, or on each thread a call has run for longer than its limit.
        """
        if self._device_error:
            return self._device_error
        if dead := self._threads.dead():
            return f"the compute thread {dead[0]} has ended"
        now_s = time.monotonic()
        overdue = [job for job in list(self._running.values()) if now_s - job.progress_s > self._limit_s(job)]
        if len(overdue) < self._threads.count:
            return ""
        job = overdue[0]
        return f"{job.name} has run for {now_s - job.progress_s:.1f} s; the limit is {self._limit_s(job):.1f} s"

    def _limit_s(self, job: _Job) -> float:
        if job.limit_s is not None:
            return job.limit_s
        recent = self._durations.get(job.name)
        if recent is not None:
            return recent.limit_s(self.hung_after_s, job.size)
        return max(self.hung_after_s, FIRST_CALL_S, HUNG_FACTOR * self.loading_s, FIRST_UNIT_S * job.size)


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__name__)


class WorkerPool:
    """Several workers. A job uses one of them for all its calls, so that these run in order.

    Not thread-safe: use it from one event loop.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers, self._jobs = tuple(workers), [0] * len(workers)

    @contextmanager
    def least_busy(self) -> Iterator[Worker]:
        """The worker with the fewest jobs; it counts one job more until the block ends."""
        number = self._jobs.index(min(self._jobs))
        self._jobs[number] += 1
        try:
            yield self.workers[number]
        finally:
            self._jobs[number] -= 1
