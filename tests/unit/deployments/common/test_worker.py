"""Compute threads: the limits of their calls, what counts as a hang, and what happens when a device is lost."""

import asyncio
import threading
import time

import pytest
import torch

from deployments.common import worker as worker_module
from deployments.common.errors import ReplicaFailedError
from deployments.common.worker import DaemonThreads, RecentDurations, Worker, WorkerPool
from models.errors import TextError


class Clock:
    """Replaces `time` in the module under test, and only there: the event loop needs the real one."""

    def __init__(self, monkeypatch) -> None:
        self.now_s, self.perf_counter = 1000.0, time.perf_counter
        monkeypatch.setattr(worker_module, "time", self)

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


class Hang:
    """A function that runs until `release`."""

    def __init__(self) -> None:
        self.started, self._gate = threading.Event(), threading.Event()

    def __call__(self, after_start=lambda: None) -> None:
        after_start()
        self.started.set()
        self._gate.wait(30)

    def release(self) -> None:
        self._gate.set()


@pytest.fixture
def hang():
    hang = Hang()
    yield hang
    hang.release()


async def running(worker: Worker, hang: Hang, *arguments) -> asyncio.Task:
    """A task whose function runs now."""
    task = asyncio.create_task(worker.run(hang, *arguments))
    await asyncio.to_thread(hang.started.wait, 30)
    return task


def fault_after(worker: Worker, clock: Clock, seconds: float) -> str:
    """The worker's fault if the clock stood that many seconds later."""
    clock.now_s += seconds
    fault = worker.fault()
    clock.now_s -= seconds
    return fault


# --- calls that hang


@pytest.mark.parametrize(("loading_s", "limit_s"), [(0.0, 10), (2.0, 10), (20.0, 80)])
async def test_the_first_call_of_a_function_may_take_longer_than_loading_the_engine(clock, hang, loading_s, limit_s):
    worker = Worker("test")
    worker.loading_s = loading_s
    task = await running(worker, hang)
    assert fault_after(worker, clock, limit_s - 1) == ""
    expected = f"Hang has run for {limit_s + 1}.0 s; the limit is {limit_s}.0 s"
    assert fault_after(worker, clock, limit_s + 1) == expected
    hang.release()
    await task
    assert fault_after(worker, clock, 1000) == ""


async def test_a_later_call_has_the_limit_of_the_config(clock, hang):
    worker = Worker("test")
    worker.set_limits(5.0, 600.0)
    await worker.run(hang.__class__.release, hang)  # another function, whose history does not count
    hang._gate.set()
    await worker.run(hang)
    hang._gate.clear()
    hang.started.clear()
    task = await running(worker, hang)
    assert fault_after(worker, clock, 4.9) == ""
    assert fault_after(worker, clock, 5.1).endswith("the limit is 5.0 s")
    hang.release()
    await task


async def test_the_limit_of_a_large_call_follows_from_its_size(clock, hang):
    worker = Worker("test")
    task = asyncio.create_task(worker.run_sized(30.0, hang))
    await asyncio.to_thread(hang.started.wait, 30)
    assert fault_after(worker, clock, 61).endswith("the limit is 60.0 s")  # nothing is known: 2 s per unit
    hang.release()
    await task
    worker._durations["Hang"] = RecentDurations()
    worker._durations["Hang"].add(1.0)
    hang._gate.clear()
    hang.started.clear()
    task = asyncio.create_task(worker.run_sized(30.0, hang))
    await asyncio.to_thread(hang.started.wait, 30)
    assert fault_after(worker, clock, 121).endswith("the limit is 120.0 s")  # 4 · 1 s per unit
    hang.release()
    await task


async def test_a_function_with_a_limit_of_its_own_may_report_progress(clock, hang):
    worker, reported = Worker("test"), threading.Event()

    def prepare() -> None:
        hang.started.wait(30)
        worker.progressed()
        reported.set()
        hang._gate.wait(30)

    task = asyncio.create_task(worker.run_long(100.0, prepare))
    await asyncio.sleep(0.01)
    assert fault_after(worker, clock, 101) != ""
    clock.now_s += 80
    hang.started.set()
    await asyncio.to_thread(reported.wait, 30)
    assert fault_after(worker, clock, 99) == "" and fault_after(worker, clock, 101) != ""
    hang.release()
    await task


async def test_each_call_of_a_guarded_function_is_progress(clock, hang):
    worker = Worker("test")
    task = await running(worker, hang, worker.guard(lambda: setattr(clock, "now_s", clock.now_s + 40)))
    began = worker._running[next(iter(worker._running))]
    assert began.progress_s == clock.now_s - 40  # the guarded call began before it took 40 s
    hang.release()
    await task


async def test_threads_that_wait_for_a_server_hang_only_together(clock, hang):
    worker = Worker("io", threads=2)
    worker.set_limits(5.0, 600.0)
    first = await running(worker, hang)
    hang.started.clear()
    assert fault_after(worker, clock, 10_000) == ""  # one thread is left
    second = await running(worker, hang)
    assert fault_after(worker, clock, 599) == ""
    assert fault_after(worker, clock, 601).endswith("the limit is 600.0 s")
    hang.release()
    await asyncio.gather(first, second)


@pytest.mark.parametrize(
    ("durations_s", "limit_s"),
    [
        ([], 8),
        ([0.1] * 100, 8),
        ([3.0], 12),
        ([0.1, 8.0], 32),
        ([3.0] * 100, 12),
        ([0.1] * 99 + [60.0], 8),
        ([0.1] * 98 + [60.0] * 2, 240),
    ],
)
def test_a_limit_follows_the_99th_percentile_of_recent_calls(durations_s, limit_s):
    durations = RecentDurations()
    for duration_s in [99.0] * 5 * (len(durations_s) == 100) + durations_s:  # only the latest hundred count
        durations.add(duration_s)
    assert durations.limit_s(8.0) == pytest.approx(limit_s)


# --- a lost device


async def test_after_a_device_error_the_worker_takes_no_more_calls(monkeypatch):
    monkeypatch.setattr(worker_module, "END_S", 0.01)
    worker, calls = Worker("test"), []

    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for it.")

    with pytest.raises(ReplicaFailedError, match=r"being replaced: the device is lost: CUDA error: device-side assert"):
        await worker.run(lost)
    assert worker.fault() == "the device is lost: CUDA error: device-side assert triggered"
    with pytest.raises(ReplicaFailedError):
        await worker.run(calls.append, 1)
    assert calls == []


async def test_a_guarded_function_reports_a_lost_device_that_its_caller_hides():
    worker = Worker("test")

    @worker.guard
    def compute() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def batch() -> str:
        try:
            compute()
        except ReplicaFailedError as error:
            return str(error)
        return ""

    assert "illegal memory access" in (await worker.run(batch)).value
    assert "illegal memory access" in worker.fault()


async def test_a_function_that_is_guarded_twice_says_it_once():
    worker = Worker("test")

    @worker.guard
    def compute() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(ReplicaFailedError) as failed:
        await worker.run(compute)
    assert str(failed.value).count("the device is lost") == 1 == worker.fault().count("the device is lost")


@pytest.mark.parametrize(
    "error", [TextError("Nothing to say."), ValueError(), torch.OutOfMemoryError("CUDA out of memory.")]
)
async def test_other_errors_are_raised_and_the_worker_goes_on(error):
    worker = Worker("test")

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        await worker.run(fail)
    assert worker.fault() == "" and (await worker.run(lambda: 1)).value == 1


# --- threads


async def test_a_thread_that_has_ended_is_a_fault():
    worker = Worker("test")
    await worker.run(lambda: None)
    worker._threads.shutdown()
    worker._threads._threads[0].join(30)
    assert worker.fault() == "the compute thread test_0 has ended"


def test_threads_end_when_nobody_uses_them_any_more():
    threads = DaemonThreads("test", 1)
    threads.submit(lambda: None).result(30)
    (thread,) = threads._threads
    del threads
    thread.join(30)
    assert not thread.is_alive()


def test_a_thread_never_delays_the_end_of_the_process():
    threads = DaemonThreads("test", 2)
    for _ in range(3):
        threads.submit(lambda: None).result(30)
    assert [thread.daemon for thread in threads._threads] == [True, True]


def test_a_pool_tells_its_workers():
    workers = [Worker("a"), Worker("b")]
    assert WorkerPool(workers).workers == tuple(workers)
