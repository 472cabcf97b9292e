"""FrameBatcher: shared batches, the most urgent frames first; cancellations and errors affect only their callers."""

import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from deployments.batching import FrameBatcher, stacked
from deployments.common.errors import ReplicaFailedError
from deployments.common.urgency import NO_HURRY, Urgency
from deployments.common.worker import Worker


class Recorder:
    """Doubles its items and records the batches. Waits for `gate` if there is one."""

    def __init__(self, gate: threading.Event | None = None, takes_s: float = 0.001) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.takes_s = gate, takes_s

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        if self.gate is not None:
            self.gate.wait(10)
        time.sleep(self.takes_s)
        if -1 in items:
            raise ValueError("a bad frame")
        return [2 * item for item in items]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def batcher_of(compute, batch_size, wait_s):
    """A batcher with the compute thread of a stage."""
    return FrameBatcher(compute, Worker("compute").run, batch_size, wait_s)


async def test_frames_of_two_callers_share_one_batch():
    compute = Recorder()
    batcher = batcher_of(compute, batch_size=8, wait_s=0.05)
    one, two = await asyncio.gather(
        batcher.submit([1, 2, 3], NO_HURRY, "alice"), batcher.submit([4, 5], NO_HURRY, "bob")
    )
    assert compute.batches == [[1, 2, 3, 4, 5]]
    assert (one.results, two.results) == ([2, 4, 6], [8, 10])
    assert one.busy_s == pytest.approx(one.compute_s * 3 / 5)
    assert (batcher.batches, batcher.batched_items, batcher.shared_batches) == (1, 5, 1)


async def test_a_full_batch_does_not_wait():
    compute = Recorder()
    batcher = batcher_of(compute, batch_size=2, wait_s=3600.0)
    done = await asyncio.wait_for(batcher.submit([1, 2], NO_HURRY), 30)
    assert done.results == [2, 4]


async def test_a_batch_with_free_places_waits_for_wait_s():
    batcher = batcher_of(Recorder(), batch_size=8, wait_s=0.03)
    done = await asyncio.wait_for(batcher.submit([1], NO_HURRY), 30)
    assert done.queue_s >= 0.025
    assert done.compute_s >= 0.001
    assert done.busy_s == pytest.approx(done.compute_s)


async def test_a_long_request_is_split_into_batches_and_returned_in_order():
    compute = Recorder()
    batcher = batcher_of(compute, batch_size=4, wait_s=0.0)
    done = await batcher.submit(list(range(10)), NO_HURRY)
    assert [len(batch) for batch in compute.batches] == [4, 4, 2]
    assert done.results == [2 * k for k in range(10)]


async def test_the_earliest_deadline_is_computed_first():
    gate = threading.Event()
    compute = Recorder(gate)
    batcher = batcher_of(compute, batch_size=2, wait_s=0.0)
    running = asyncio.create_task(batcher.submit([0, 0], NO_HURRY))
    await until(lambda: compute.batches)
    late = asyncio.create_task(batcher.submit([9, 9], Urgency(9.0)))
    soon = asyncio.create_task(batcher.submit([1, 1], Urgency(1.0)))
    await until(lambda: batcher.waiting() == 4)
    gate.set()
    await asyncio.gather(running, late, soon)
    assert compute.batches == [[0, 0], [1, 1], [9, 9]]


async def test_a_cancelled_request_is_not_computed():
    gate = threading.Event()
    compute = Recorder(gate)
    batcher = batcher_of(compute, batch_size=2, wait_s=0.0)
    running = asyncio.create_task(batcher.submit([0, 0], NO_HURRY))
    await until(lambda: compute.batches)
    dropped = asyncio.create_task(batcher.submit([5, 5, 5, 5], Urgency(1.0)))
    kept = asyncio.create_task(batcher.submit([7], Urgency(2.0)))
    await until(lambda: batcher.waiting() == 5)
    dropped.cancel()
    gate.set()
    assert (await kept).results == [14]
    await running
    assert compute.batches == [[0, 0], [7]]
    assert batcher.waiting() == 0


async def test_an_error_is_raised_only_in_the_callers_of_its_batch():
    gate = threading.Event()
    compute = Recorder(gate)
    batcher = batcher_of(compute, batch_size=2, wait_s=0.0)
    bad = asyncio.create_task(batcher.submit([-1, 1], NO_HURRY))
    good = asyncio.create_task(batcher.submit([3, 4], Urgency(1.0)))
    await until(lambda: compute.batches)
    gate.set()
    with pytest.raises(ValueError, match="a bad frame"):
        await bad
    assert (await good).results == [6, 8]


@pytest.mark.parametrize("results", [[], [2], [2, 4, 6]])
async def test_a_wrong_number_of_results_is_an_error(results):
    def compute(items: list[int]) -> list[int]:
        return results if items == [1, 2] else items

    batcher = batcher_of(compute, batch_size=2, wait_s=0.0)
    with pytest.raises(RuntimeError, match=f"a batch of 2 items gave {len(results)} results"):
        await asyncio.wait_for(batcher.submit([1, 2], NO_HURRY), 30)
    assert (await asyncio.wait_for(batcher.submit([7, 8], NO_HURRY), 30)).results == [7, 8]


@pytest.mark.parametrize("end", [asyncio.CancelledError(), RuntimeError("cannot schedule new futures")])
async def test_callers_do_not_wait_forever_when_the_thread_accepts_no_work(end):
    refuses = [True]

    async def run(function) -> None:
        if refuses.pop():
            raise end
        function()

    batcher = FrameBatcher(Recorder(), run, batch_size=2, wait_s=0.0)
    with pytest.raises(type(end)):
        await asyncio.wait_for(batcher.submit([1], NO_HURRY), 30)
    refuses += [False] * 4
    assert (await asyncio.wait_for(batcher.submit([7], NO_HURRY), 30)).results == [14]


async def test_the_thread_starts_the_next_batch_before_the_results_are_handed_out():
    first, gate, second = threading.Event(), threading.Event(), threading.Event()

    def compute(items: list[int]) -> list[int]:
        if items == [2]:
            second.set()
            return items
        first.set()
        gate.wait(30)
        return items

    batcher = batcher_of(compute, batch_size=1, wait_s=0.0)
    waits = [asyncio.create_task(batcher.submit([k], Urgency(float(k)))) for k in (1, 2)]
    await until(lambda: first.is_set() and len(batcher._queued) == 2)
    gate.set()
    assert second.wait(30), "the thread waited for the event loop, which is blocked here"
    await asyncio.gather(*waits)


async def test_a_batch_is_filled_when_it_starts_and_not_earlier():
    gate = threading.Event()
    compute = Recorder(gate)
    batcher = batcher_of(compute, batch_size=2, wait_s=0.0)
    waits = [asyncio.create_task(batcher.submit([0, 0], NO_HURRY))]
    await until(lambda: compute.batches)
    waits.append(asyncio.create_task(batcher.submit([9, 9], Urgency(9.0))))
    await until(lambda: len(batcher._queued) == 2)  # the next batch is waiting for the thread
    waits.append(asyncio.create_task(batcher.submit([1, 1], Urgency(1.0))))
    await until(lambda: batcher.waiting() == 4)
    gate.set()
    await asyncio.gather(*waits)
    assert compute.batches == [[0, 0], [1, 1], [9, 9]]


async def test_many_callers_get_their_own_results():
    compute = Recorder(takes_s=0.0)
    batcher = batcher_of(compute, batch_size=4, wait_s=0.0)

    async def call(number: int) -> None:
        items = [100 * number + k for k in range(number % 7 + 1)]
        assert (await batcher.submit(items, Urgency(number % 5), str(number))).results == [2 * item for item in items]

    await asyncio.gather(*(call(number) for number in range(200)))
    assert batcher.batched_items == sum(number % 7 + 1 for number in range(200))
    assert batcher.waiting() == 0


async def test_no_items_need_no_batch():
    compute = Recorder()
    assert (await batcher_of(compute, 4, 0.0).submit([], NO_HURRY)).results == []
    assert compute.batches == []


async def test_queue_and_compute_time_add_up_to_the_duration():
    batcher = batcher_of(Recorder(takes_s=0.005), batch_size=2, wait_s=0.0)
    begin_s = time.perf_counter()
    done = await batcher.submit([1, 2, 3, 4], NO_HURRY)
    assert done.compute_s >= 2 * 0.005
    assert 0 <= done.queue_s <= time.perf_counter() - begin_s - done.compute_s


def test_rows_of_one_batch_are_stacked_without_a_copy() -> None:
    batch = np.arange(80, dtype=np.uint8).reshape(5, 4, 4)
    rows, other = list(batch), np.zeros((4, 4), np.uint8)
    assert np.shares_memory(stacked(rows[1:4]), batch) and np.array_equal(stacked(rows[1:4]), batch[1:4])
    mixtures = [[rows[0], rows[2]], [rows[2], rows[1]], [rows[0], rows[0]], [rows[0], other], [other], [rows[3].T]]
    for mixed in mixtures:
        assert np.array_equal(stacked(mixed), np.stack(mixed)) and not np.shares_memory(stacked(mixed), batch)


class Device:
    """Computes batches one after another, each when the test says so."""

    def __init__(self) -> None:
        self.begun: list[list[int]] = []
        self.last_part: list[threading.Event] = []
        self.done: list[threading.Event] = []
        self.failing: set[int] = set()

    def __call__(self, items: list[int]) -> Callable[[], list[int]]:
        last_part, done = threading.Event(), threading.Event()

        def results() -> list[int]:
            assert done.wait(10)
            if self.failing & set(items):
                raise ValueError("a bad frame")
            return [2 * item for item in items]

        results.wait_for_last_part = lambda: last_part.wait(10)
        self.last_part.append(last_part)
        self.done.append(done)
        self.begun.append(items)
        return results


async def test_the_next_batch_is_begun_shortly_before_the_device_needs_it_and_results_come_when_they_are_there():
    device = Device()
    batcher = batcher_of(device, batch_size=2, wait_s=0.0)
    first = asyncio.create_task(batcher.submit([0, 0], NO_HURRY))
    await until(lambda: device.begun)
    late = asyncio.create_task(batcher.submit([9, 9], Urgency(9.0)))
    await until(lambda: len(batcher._queued) == 2)
    soon = asyncio.create_task(batcher.submit([1, 1], Urgency(1.0)))
    await until(lambda: batcher.waiting() == 4)
    assert device.begun == [[0, 0]]  # the device is not near the end of it
    device.last_part[0].set()
    await until(lambda: len(device.begun) == 2)
    assert device.begun[1] == [1, 1] and not first.done()
    device.done[0].set()
    assert (await first).results == [0, 0]  # while the second batch runs
    device.last_part[1].set()
    await until(lambda: len(device.begun) == 3)
    for done in device.done:
        done.set()
    device.last_part[2].set()
    assert (await soon).results == [2, 2] and (await late).results == [18, 18]


async def test_a_last_batch_is_finished_although_none_follows():
    device = Device()
    batcher = batcher_of(device, batch_size=2, wait_s=0.0)
    waits = asyncio.create_task(batcher.submit([3], NO_HURRY))
    await until(lambda: device.begun)
    device.last_part[0].set()
    device.done[0].set()
    assert (await waits).results == [6]


async def test_a_frame_that_fails_on_the_device_fails_alone():
    device = Device()
    device.failing = {4}
    batcher = batcher_of(device, batch_size=3, wait_s=0.05)
    waits = [asyncio.create_task(batcher.submit(items, NO_HURRY, str(items))) for items in ([3], [4], [5])]
    while not all(task.done() for task in waits):
        for event in device.last_part + device.done:
            event.set()
        await asyncio.sleep(0.001)
    good, bad, other = await asyncio.gather(*waits, return_exceptions=True)
    assert (good.results, other.results) == ([6], [10]) and isinstance(bad, ValueError)


async def test_a_device_that_is_lost_while_a_batch_runs_fails_all_that_wait_for_it(monkeypatch):
    monkeypatch.setattr("deployments.common.worker.END_S", 0.0)
    worker, events = Worker("compute"), []

    def compute(items: list[int]) -> Callable[[], list[int]]:
        events.append(threading.Event())

        def results(event: threading.Event = events[-1]) -> list[int]:
            event.wait(10)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        return results

    batcher = FrameBatcher(compute, worker.run, 1, 0.0)
    waits = [asyncio.create_task(batcher.submit([k], NO_HURRY, str(k))) for k in range(2)]
    await until(lambda: len(events) == 2)
    for event in events:
        event.set()
    errors = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(error) for error in errors] == [ReplicaFailedError] * 2 and "the device is lost" in worker.fault()
