"""A WebSocket that sends, runs and watches nothing for `socket_idle_s` is closed. The routes, in virtual time."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.ingress.app import api
from tests.support.ingress import EndlessStitch, Handle, make_replica
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

IDLE_S = 10.0


class Socket:
    """A client of /sessions/alice/ws. events: (seconds since it connected, type) of what it receives."""

    def __init__(self, replica: Any) -> None:
        self.replica = replica
        self.events: list[tuple[float, str]] = []
        self.sent: list[dict] = []
        self._incoming: asyncio.Queue[dict] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._began_s = asyncio.get_running_loop().time()
        scope = {
            "type": "websocket",
            "path": "/sessions/alice/ws",
            "raw_path": b"/sessions/alice/ws",
            "query_string": b"",
            "headers": [],
            "scheme": "ws",
            "server": ("here", 80),
            "client": None,
            "subprotocols": [],
        }
        self._app = asyncio.create_task(api(scope, self._incoming.get, self._send))

    async def _send(self, message: dict) -> None:
        self.sent.append(message)
        kind = json.loads(message["text"])["type"] if message.get("text") else message["type"]
        self.events.append((asyncio.get_running_loop().time() - self._began_s, kind))

    def send(self, **command: Any) -> None:
        self._incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(command)})

    def is_open(self) -> bool:
        return not self._app.done()

    async def closed_after_s(self) -> float:
        """When the server closes it. Raises TimeoutError if it stays open."""
        async with asyncio.timeout(20 * IDLE_S):
            await asyncio.wait({self._app})
        assert self.events[-1][1] == "websocket.close"
        return self.events[-1][0]

    async def leave(self) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        async with asyncio.timeout(IDLE_S):
            await asyncio.wait({self._app})


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
    """connect(stitch, idle_s) → a Socket."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))

    def start(stitch: Handle | None = None, idle_s: float = IDLE_S) -> Socket:
        replica = make_replica(monkeypatch, stitch or Handle(session={}), config={"socket_idle_s": idle_s})
        return Socket(replica)

    return start


async def test_an_idle_websocket_is_closed_with_the_reason(connect):
    socket = connect()
    assert await socket.closed_after_s() == pytest.approx(IDLE_S, abs=0.1)
    assert [kind for _, kind in socket.events] == ["websocket.accept", "ready", "failed", "websocket.close"]
    error = json.loads(socket.sent[2]["text"])["error"]
    assert (error["code"], error["message"]) == ("idle", f"Nothing was sent or watched for {IDLE_S:g} s.")
    assert socket.sent[3]["code"] == 4408


async def test_a_message_starts_the_idle_time_again(connect):
    socket = connect()
    await asyncio.sleep(0.9 * IDLE_S)
    socket.send(type="played", pieces=1)
    assert await socket.closed_after_s() == pytest.approx(1.9 * IDLE_S, abs=0.1)


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
    assert ended_s < await socket.closed_after_s() <= ended_s + 2 * IDLE_S


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
    assert ended_s < await socket.closed_after_s() <= ended_s + 2 * IDLE_S
