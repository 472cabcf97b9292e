"""Cuts: what a session says and is going to say ends; what others say, or what is asked for later, does not."""

import asyncio
import contextlib

import pytest

from deployments.stitch.interrupts import Interrupt, Interrupts
from models.errors import InterruptedSpeech
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


async def test_work_goes_on_without_a_cut():
    assert await Interrupt().run(asyncio.sleep(0, "done")) == "done"


async def test_a_cut_cancels_the_work_and_waits_until_it_has_ended():
    cut, ended = Interrupt(), []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    asyncio.get_running_loop().call_later(0.01, cut.set)
    with pytest.raises(InterruptedSpeech):
        await cut.run(work())
    assert ended == [True]


async def test_an_error_of_the_work_is_its_own():
    async def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await Interrupt().run(work())


async def test_a_caller_that_is_cancelled_takes_its_work_along():
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    caller = asyncio.create_task(Interrupt().run(work()))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [True]


def test_a_cut_concerns_one_session_and_only_what_was_asked_before_it():
    cuts = Interrupts()
    with cuts.register("alice") as said, cuts.register("alice") as waiting, cuts.register("bob") as other:
        assert cuts.interrupt("alice") == 2
        with cuts.register("alice") as later:
            assert [said.is_set, waiting.is_set, other.is_set, later.is_set] == [True, True, False, False]
            assert cuts.interrupt("alice") == 1  # what was cut before is not counted again
    assert cuts.interrupt("alice") == cuts.interrupt("nobody") == 0
    with pytest.raises(InterruptedSpeech) as raised:
        said.check()
    assert (raised.value.status, raised.value.code) == (409, "interrupted") and raised.value.remedy


async def test_what_is_to_happen_at_once_does_not_wait_for_work_that_cannot_be_broken_off():
    cut, acted = Interrupt(), []

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0.05)
        acted.append("work ended")

    cut.on_set(lambda: acted.append("at once"))
    asyncio.get_running_loop().call_later(0.01, cut.set)
    with pytest.raises(InterruptedSpeech):
        await cut.run(work())
    cut.set()
    cut.on_set(lambda: acted.append("too late to wait"))
    assert acted == ["at once", "work ended", "too late to wait"]


async def test_a_cut_does_not_wait_for_room_and_takes_none():
    room, cut = asyncio.Semaphore(1), Interrupt()
    await room.acquire()
    asyncio.get_running_loop().call_later(0.01, cut.set)
    with pytest.raises(InterruptedSpeech):
        async with cut.acquire(room):
            pass
    room.release()
    async with Interrupt().acquire(room):
        assert room.locked()
    assert not room.locked()


async def test_room_that_is_given_in_the_moment_of_leaving_is_given_back():
    room = asyncio.Semaphore(1)
    await room.acquire()

    async def enter() -> None:
        async with Interrupt().acquire(room):
            await asyncio.sleep(60)

    for steps in range(8):
        task = asyncio.create_task(enter())
        await asyncio.sleep(0.01)
        room.release()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.wait_for(room.acquire(), 1)
