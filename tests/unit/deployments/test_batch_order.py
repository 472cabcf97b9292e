"""FrameBatcher in virtual time: who comes first, and that everything advances."""

import asyncio

import numpy as np
import pytest

from deployments.batching import FrameBatcher
from deployments.common.urgency import NO_HURRY, Urgency
from tests.support.virtual_time import event_loop_policy

__all__ = ["event_loop_policy"]


class Device:
    """A compute thread in virtual time: one batch at a time. Records who was in each batch, and when it ended."""

    def __init__(self, batch_s: float) -> None:
        self.batch_s, self._free, self.batches = batch_s, asyncio.Lock(), []

    async def run(self, function) -> None:
        async with self._free:
            function()
            await asyncio.sleep(self.batch_s)

    def compute(self, items: list[str]) -> list[str]:
        self.batches.append(items)
        return items


@pytest.fixture
async def device(monkeypatch) -> Device:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr("deployments.batching.time.perf_counter", loop.time)
    return Device(batch_s=0.5)


async def make_slowly(batcher, name: str, stop: asyncio.Event, window: int = 3, slack_s: float = -100.0) -> int:
    """A job that keeps `window` chunks of 8 frames in flight and is always late. Returns its chunks."""
    done = 0

    async def lane() -> None:
        nonlocal done
        while not stop.is_set():
            await batcher.submit([name] * 8, Urgency(slack_s, 0.32, background=True), name)
            done += 1

    await asyncio.gather(*(lane() for _ in range(window)))
    return done


async def test_late_jobs_do_not_delay_a_new_one(device):
    """Three jobs at a quarter of real time each. A new first chunk waits for the batch that runs."""
    batcher = FrameBatcher(device.compute, device.run, batch_size=8, wait_s=0.0)
    stop = asyncio.Event()
    jobs = [asyncio.create_task(make_slowly(batcher, name, stop)) for name in "abc"]
    await asyncio.sleep(60.2)
    loop, waits_s = asyncio.get_running_loop(), []
    for _ in range(3):
        begin_s = loop.time()
        await batcher.submit(["new"] * 4, Urgency(0.16, 0.16, background=False), "new")
        waits_s.append(loop.time() - begin_s)
        await asyncio.sleep(0.7)
    stop.set()
    done = await asyncio.gather(*jobs)
    assert sorted(waits_s)[1] <= 2 * device.batch_s, waits_s  # the running batch, and its own
    assert max(waits_s) <= 3 * device.batch_s, waits_s  # where it meets the eighth batch, which is for the oldest
    assert max(done) - min(done) <= 3, done  # the jobs share the rest


async def test_watched_frames_come_before_the_background_which_still_advances(device):
    batcher = FrameBatcher(device.compute, device.run, batch_size=8, wait_s=0.0)
    stop = asyncio.Event()
    live = asyncio.create_task(make_watched(batcher, stop))
    file = asyncio.create_task(make_slowly(batcher, "file", stop))
    await asyncio.sleep(80)
    stop.set()
    await asyncio.gather(live, file)
    names = ["file" if "file" in batch else "live" for batch in device.batches]
    assert names.count("file") == pytest.approx(len(names) / 8, abs=3)
    assert names.count("live") > 0.8 * len(names)


async def test_the_oldest_request_of_frames_goes_first_in_every_eighth_batch(device):
    batcher = FrameBatcher(device.compute, device.run, batch_size=1, wait_s=0.0)
    running = asyncio.create_task(batcher.submit([np.ones(2)], NO_HURRY, "running"))
    await asyncio.sleep(0.1)
    file = asyncio.create_task(batcher.submit([np.zeros(2)], NO_HURRY, "file"))
    await asyncio.sleep(0.1)
    others = [batcher.submit([np.ones(2)], Urgency(-1.0, 0.32, background=False), str(k)) for k in range(12)]
    await asyncio.gather(running, file, *others)
    assert [frame[0][0] for frame in device.batches] == [1.0] * 7 + [0.0] + [1.0] * 6


async def make_watched(batcher, stop: asyncio.Event) -> None:
    """Live speech that would take all of the device."""

    async def lane() -> None:
        while not stop.is_set():
            await batcher.submit(["live"] * 8, Urgency(0.3, 0.32, background=False), "live")

    await asyncio.gather(*(lane() for _ in range(3)))


async def test_a_late_watched_job_does_not_delay_one_in_time(device):
    batcher = FrameBatcher(device.compute, device.run, batch_size=1, wait_s=0.0)
    late = [asyncio.create_task(batcher.submit(["late"], Urgency(-50.0, 0.32, False), str(k))) for k in range(5)]
    await asyncio.sleep(0.1)
    in_time = asyncio.create_task(batcher.submit(["in time"], Urgency(0.31, 0.32, False), "x"))
    early = asyncio.create_task(batcher.submit(["early"], Urgency(60.0, 0.32, False), "y"))
    await asyncio.gather(*late, in_time, early)
    order = [batch[0] for batch in device.batches]
    # `in time` misses its time during the batch that runs; then it is as urgent as the others, and newer than they are
    assert order[0] == "late" and order[-1] == "early"


async def test_a_session_gets_its_chunks_in_order_also_after_it_was_late(device):
    """The first one misses its time while it waits; then the second has less slack left."""
    batcher = FrameBatcher(device.compute, device.run, batch_size=1, wait_s=0.0)
    running = asyncio.create_task(batcher.submit(["running"], NO_HURRY))
    await asyncio.sleep(0.1)
    chunks = [batcher.submit([f"chunk {k}"], Urgency(0.32 * k, 0.32, False), "alice") for k in range(1, 4)]
    await asyncio.gather(running, *chunks)
    assert [batch[0] for batch in device.batches] == ["running", "chunk 1", "chunk 2", "chunk 3"]


async def test_slack_that_passes_in_the_queue_counts(device):
    """Of two calls with the same slack left, the older came with more."""
    batcher = FrameBatcher(device.compute, device.run, batch_size=1, wait_s=0.0)
    running = asyncio.create_task(batcher.submit(["running"], NO_HURRY))
    await asyncio.sleep(0.1)
    old = asyncio.create_task(batcher.submit(["old"], Urgency(2.0, 0.32, False)))
    await asyncio.sleep(0.2)
    new = asyncio.create_task(batcher.submit(["new"], Urgency(1.9, 0.32, False)))
    await asyncio.gather(running, old, new)
    assert [batch[0] for batch in device.batches] == ["running", "old", "new"]
