"""The events of a broadcast as its listeners get them."""

import asyncio
import time
from contextlib import aclosing

import pytest

from deployments.common.messages import LiveEvent, LiveStart
from deployments.stitch.live.broadcast import HEARTBEAT_S, MAX_QUEUED_EVENTS, Broadcast
from models.live.timeline import IdleGrid, LiveClock, LiveFragment
from tests.support.live import SPEC
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

START = LiveStart("alice", "ann", SPEC, "/nowhere")


@pytest.fixture
def broadcast() -> Broadcast:
    return Broadcast(START, IdleGrid(100), LiveClock.starting(0, time.time(), 25))


async def test_a_listener_gets_the_start_then_heartbeats_then_the_end(broadcast):
    events, start_s = broadcast.listen(), time.monotonic()
    assert (await anext(events)).start == START and broadcast.watched
    assert await anext(events) == LiveEvent(broadcast.clock)
    assert time.monotonic() - start_s == pytest.approx(HEARTBEAT_S)
    broadcast.close("reset")
    assert [event.ended async for event in events] == ["reset"] and not broadcast.watched


async def test_a_listener_that_reads_nothing_is_disconnected(broadcast):
    events = broadcast.listen()
    assert (await anext(events)).start == START
    for k in range(MAX_QUEUED_EVENTS + 2):
        broadcast.send(LiveFragment(k, k + 1, (b"",)))
    assert not broadcast.watched
    assert len([event async for event in events]) == MAX_QUEUED_EVENTS


@pytest.mark.parametrize("steps", range(4))
async def test_a_cancellation_that_arrives_with_an_event_is_not_lost(broadcast, steps):
    async def listen() -> None:
        async with aclosing(broadcast.listen()) as events:
            async for _ in events:
                pass

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0.1)
    broadcast.expect_speech(4)
    for _ in range(steps):
        await asyncio.sleep(0)
    listener.cancel()
    await asyncio.wait({listener}, timeout=1)
    assert listener.cancelled() and not broadcast.watched
