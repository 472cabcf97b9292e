"""Interrupts end the utterances of one session, not those of others nor later ones."""

import asyncio
import contextlib
import time

import pytest

from deployments.stitch.interrupts import Interrupt, Interrupts
from models.errors import InterruptedSpeech, MovedError
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


def set_later(interrupt: Interrupt) -> None:
    asyncio.get_running_loop().call_later(0.01, interrupt.set)


async def test_work_runs_to_its_result_without_an_interrupt():
    assert await Interrupt().run(asyncio.sleep(0, "done")) == "done"


async def test_an_interrupt_cancels_the_work_and_waits_until_it_has_ended():
    interrupt, ended = Interrupt(), []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    set_later(interrupt)
    with pytest.raises(InterruptedSpeech):
        await interrupt.run(work())
    assert ended == [True]


async def test_a_result_that_comes_with_the_interrupt_is_dropped():
    interrupt = Interrupt()

    async def work() -> str:
        interrupt.set()
        return "done"

    with pytest.raises(InterruptedSpeech):
        await interrupt.run(work())


async def test_an_error_of_the_work_is_raised():
    async def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await Interrupt().run(work())


async def test_cancelling_the_caller_cancels_the_work():
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


def test_an_interrupt_affects_one_session_and_only_its_present_utterances():
    interrupts = Interrupts()
    with (
        interrupts.register("alice") as speaking,
        interrupts.register("alice") as waiting,
        interrupts.register("bob") as other,
    ):
        assert (len(interrupts), interrupts.count("alice"), interrupts.sessions()) == (3, 2, ["alice", "bob"])
        assert interrupts.interrupt("alice") == 2
        with interrupts.register("alice") as later:
            assert [i.is_set for i in (speaking, waiting, other, later)] == [True, True, False, False]
            assert interrupts.interrupt("alice") == 1  # those interrupted before are not counted again
    assert interrupts.interrupt("alice") == interrupts.interrupt("nobody") == len(interrupts) == 0
    with pytest.raises(InterruptedSpeech) as raised:
        speaking.check()
    assert (raised.value.status, raised.value.code) == (409, "interrupted") and raised.value.remedy


async def test_callbacks_do_not_wait_for_work_that_cannot_be_cancelled():
    interrupt, events = Interrupt(), []

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0.05)
        events.append("work ended")

    interrupt.on_set(lambda: events.append("callback"))
    set_later(interrupt)
    with pytest.raises(InterruptedSpeech):
        await interrupt.run(work())
    interrupt.set()
    interrupt.on_set(lambda: events.append("late callback"))
    assert events == ["callback", "work ended", "late callback"]


async def test_an_interrupt_ends_the_wait_for_a_semaphore_and_takes_none():
    semaphore, interrupt, start_s = asyncio.Semaphore(1), Interrupt(), time.monotonic()
    await semaphore.acquire()
    set_later(interrupt)
    with pytest.raises(InterruptedSpeech):
        async with interrupt.acquire(semaphore):
            pass
    assert time.monotonic() - start_s == pytest.approx(0.01)
    semaphore.release()
    async with Interrupt().acquire(semaphore):
        assert semaphore.locked()
    assert not semaphore.locked()


@pytest.mark.parametrize("steps", range(8))
async def test_a_semaphore_acquired_while_the_caller_leaves_is_released(steps):
    semaphore = asyncio.Semaphore(1)
    await semaphore.acquire()

    async def enter() -> None:
        async with Interrupt().acquire(semaphore):
            await asyncio.sleep(60)

    task = asyncio.create_task(enter())
    await asyncio.sleep(0.01)
    semaphore.release()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    async with asyncio.timeout(1):
        await semaphore.acquire()


async def test_an_interrupt_may_have_another_error_and_keeps_the_first():
    interrupt = Interrupt()
    interrupt.set(MovedError("The session moves.", "Send the request again."))
    interrupt.set()
    with pytest.raises(MovedError):
        await interrupt.run(asyncio.sleep(60))
