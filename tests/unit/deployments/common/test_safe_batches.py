"""Batches that fail: out of memory, an item that cannot be computed, a lost device."""

import asyncio
import traceback

from deployments.batching import FrameBatcher
from deployments.common.safe_batches import SafeBatches
from deployments.common.urgency import NO_HURRY
from deployments.common.worker import Worker
from models.errors import BusyError


def batcher_of(compute) -> FrameBatcher:
    """A batcher with the compute thread of a stage; a batch with free places waits 50 ms."""
    return FrameBatcher(compute, Worker("compute").run, 8, 0.05)


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError, which device_errors.py recognises by its name."""


OutOfMemoryError.__module__ = "torch"


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_remembered(monkeypatch, caplog):
    sizes, limits, now = [], [], [1000.0]
    monkeypatch.setattr("deployments.common.safe_batches.time.monotonic", lambda: now[0])

    def compute(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise OutOfMemoryError("CUDA out of memory.")
        return [2 * item for item in items]

    batches = SafeBatches("LipSync", compute, limits.append)
    assert batches.compute(list(range(8))) == [2 * k for k in range(8)]
    assert sizes == [8, 4, 2, 2, 4, 2, 2] and limits == [4, 2, 2]
    assert batches.size(8) == 2
    assert "LipSync: a batch of 8 did not fit into memory; batches have at most 4 now" in caplog.messages
    now[0] += 601
    assert batches.size(8) == 4  # tried again
    now[0] += 601
    assert batches.size(8) == 8
    batches.compute(list(range(8)))
    batches.reset()
    assert batches.size(8) == 8


async def test_the_batcher_keeps_to_the_size_that_fits():
    sizes = []

    def compute(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2:
            raise OutOfMemoryError("CUDA out of memory.")
        return items

    batcher = batcher_of(compute)
    assert (await batcher.submit(list(range(8)), NO_HURRY)).results == list(range(8))
    sizes.clear()
    assert (await batcher.submit(list(range(8)), NO_HURRY)).results == list(range(8))
    assert sizes == [2, 2, 2, 2]


def test_one_frame_that_does_not_fit_is_an_error_that_says_so():
    def compute(items: list[int]) -> list[int]:
        raise MemoryError

    (error,) = SafeBatches("Enhance", compute, lambda limit: None).compute([1])
    assert isinstance(error, BusyError) and error.message == "Enhance has too little memory for one frame."


async def test_an_item_that_cannot_be_computed_fails_alone():
    calls = []

    def compute(items: list[int]) -> list[int]:
        calls.append(len(items))
        if 5 in items:
            raise ValueError("five")
        return [2 * item for item in items]

    batcher = batcher_of(compute)
    good, bad, other = await asyncio.gather(
        batcher.submit([1, 2, 3], NO_HURRY, "a"),
        batcher.submit([4, 5], NO_HURRY, "b"),
        batcher.submit([6, 7, 8], NO_HURRY, "c"),
        return_exceptions=True,
    )
    assert (good.results, other.results) == ([2, 4, 6], [12, 14, 16])
    assert isinstance(bad, ValueError) and str(bad) == "five"
    assert len(calls) == 7  # 8 items, of which halves of 4, 2 and 1 contain the bad one


async def test_a_lost_device_is_tried_once_and_reported_to_the_thread():
    calls, reported = [], []

    def compute(items: list[int]) -> list[int]:
        calls.append(len(items))
        raise RuntimeError("CUDA error: device-side assert triggered")

    async def run(function) -> None:
        try:
            function()
        except RuntimeError as error:
            reported.append(error)
            raise

    batcher = FrameBatcher(compute, run, batch_size=8, wait_s=0.01)
    waits = [batcher.submit([1, 2], NO_HURRY, "a"), batcher.submit([3], NO_HURRY, "b")]
    errors = await asyncio.gather(*waits, return_exceptions=True)
    assert calls == [3] and len(reported) == 1
    assert [str(error) for error in errors] == ["CUDA error: device-side assert triggered"] * 2


def test_the_error_of_an_item_tells_where_it_failed() -> None:
    def compute(items: list[int]) -> list[int]:
        return [1 // item for item in items]

    good, bad = SafeBatches("LipSync", compute, lambda limit: None).compute([1, 0])
    assert good == 1 and isinstance(bad, ZeroDivisionError)
    assert "compute" in [frame.name for frame in traceback.extract_tb(bad.__traceback__)]
