"""A WebSocket over time, through the routes: its idle timeout, and text that arrives late. In virtual time."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.common.messages import SpeakEvent
from deployments.common.text_stream import WRITER_ERROR_WAIT_S
from tests.support.ingress import SUMMARY, Answers, EndlessStitch, Handle, VirtualSocket, make_replica
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

IDLE_S = 10.0


class Viewer:
    """A viewer of an endless stream."""

    timeline = SimpleNamespace(init=b"init")
    ending = None

    async def muxed(self):
        while True:
            await asyncio.sleep(1.0)
            yield None, b"fragment"

    def take_messages(self) -> list:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
async def connect(monkeypatch, tmp_path):
    """connect(stitch, idle_s) → a VirtualSocket."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))

    def start(stitch: Handle | None = None, idle_s: float = IDLE_S) -> VirtualSocket:
        replica = make_replica(monkeypatch, stitch or Handle(session={}), config={"socket_idle_s": idle_s})
        return VirtualSocket(replica)

    return start


async def test_an_idle_websocket_is_closed_with_the_reason(connect):
    socket = connect()
    assert await socket.closed_after_s(20 * IDLE_S) == pytest.approx(IDLE_S, abs=0.1)
    assert [kind for _, kind in socket.events] == ["websocket.accept", "ready", "failed", "websocket.close"]
    error = json.loads(socket.sent[2]["text"])["error"]
    assert (error["code"], error["message"]) == ("idle", f"Nothing was sent or watched for {IDLE_S:g} s.")
    assert socket.sent[3]["code"] == 4408


async def test_a_message_starts_the_idle_time_again(connect):
    socket = connect()
    await asyncio.sleep(0.9 * IDLE_S)
    socket.send(type="played", pieces=1)
    assert await socket.closed_after_s(20 * IDLE_S) == pytest.approx(1.9 * IDLE_S, abs=0.1)


async def test_an_idle_time_of_0_never_closes_a_websocket(connect):
    socket = connect(idle_s=0)
    await asyncio.sleep(1000 * IDLE_S)
    assert socket.is_open()
    await socket.leave()


async def test_a_websocket_with_a_running_command_is_not_idle(connect):
    stitch = EndlessStitch()
    socket = connect(stitch)
    socket.send(type="text", text="A text that is still being ")
    await asyncio.sleep(3.5 * IDLE_S)
    assert socket.is_open()
    socket.send(type="text", text="written.", last=True)
    ended_s = 3.5 * IDLE_S
    assert ended_s < await socket.closed_after_s(20 * IDLE_S) <= ended_s + 2 * IDLE_S


async def test_a_websocket_that_watches_is_not_idle(connect, monkeypatch):
    socket = connect()

    async def view(session_id: str, client: Any) -> Viewer:
        return Viewer()

    monkeypatch.setattr(socket.replica._hubs, "view", view)
    socket.send(type="watch")
    await asyncio.sleep(3.5 * IDLE_S)
    assert socket.is_open()
    socket.send(type="watch", on=False)
    ended_s = 3.5 * IDLE_S
    assert ended_s < await socket.closed_after_s(20 * IDLE_S) <= ended_s + 2 * IDLE_S


async def test_a_websocket_of_a_replica_that_is_being_stopped_is_closed_after_its_commands(connect):
    socket = connect(EndlessStitch())
    socket.send(type="text", text="A text that is still being ")
    await asyncio.sleep(1.0)
    socket.replica._hubs.draining.set()
    await asyncio.sleep(5.0)
    assert socket.events[-1][1] == "started"
    socket.send(type="text", text="written.", last=True)
    await asyncio.sleep(5.0)
    closed_s, kind = socket.events[-1]
    assert kind == "websocket.close" and socket.sent[-1]["code"] == 1001 and 6.0 < closed_s < 10.0
    await socket.leave()


async def test_an_interrupted_text_ignores_its_rest_and_the_next_text_is_spoken(connect):
    summaries = Answers([[SpeakEvent(summary={"interrupted": True})], [SpeakEvent(summary=SUMMARY)]])
    stitch = Handle(session={}, speak=summaries, feed=None)
    socket = connect(stitch)
    socket.send(type="text", text="Once upon ", id="one")
    await asyncio.sleep(WRITER_ERROR_WAIT_S + 0.1)
    assert [kind for _, kind in socket.events] == ["websocket.accept", "ready", "started", "done"]
    for text in ("a time. ", "There was. "):
        socket.send(type="text", text=text, id="one")
    socket.send(type="text", text="Hello.", id="two")
    socket.send(type="text", last=True)
    await asyncio.sleep(WRITER_ERROR_WAIT_S + 0.1)
    events = [json.loads(message["text"]) for message in socket.sent[-2:]]
    assert [(event["type"], event["id"]) for event in events] == [("started", "two"), ("done", "two")]
    assert sum(name == "speak" for name, _ in stitch.calls) == 2
    fed = [arguments[2] for name, arguments in stitch.calls if name == "feed"]
    assert ["Hello."] in fed and not any("time" in part for parts in fed for part in parts)
    await socket.leave()
