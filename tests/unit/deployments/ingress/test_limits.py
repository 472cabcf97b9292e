"""Limits on viewers, WebSockets and queued utterances; one more is refused with 429."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from deployments.common.messages import SpeakRequest
from deployments.ingress.limits import ConcurrencyLimit
from models.errors import BusyError
from tests.support.ingress import error_of
from tests.support.stitch import summary_of
from tests.support.whole_server import whole_server

SDP = {"content-type": "application/sdp"}
FULL = "The maximum number of viewers is watching already."


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """serve(max_viewers=…, …) → a client of a whole server with a session `alice`."""
    with ExitStack() as stack:

        def start(**ingress: Any) -> TestClient:
            client = stack.enter_context(whole_server(monkeypatch, tmp_path, Ingress=ingress))
            assert client.post("/sessions", json={"session_id": "alice"}).status_code == 201
            return client

        yield start


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    end_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.01)


async def test_a_concurrency_limit_counts_down_also_after_an_error():
    limit = ConcurrencyLimit(lambda: 1, "Full.")
    with pytest.raises(KeyError), limit.acquire():
        with pytest.raises(BusyError, match="Full"), limit.acquire():
            pass
        raise KeyError
    assert limit.active == 0


# --- viewers


def test_viewers_over_http_websocket_and_webrtc_count_together(serve):
    client = serve(max_viewers=3)
    ingress, portal = client.stages["Ingress"], client.portal
    http = SimpleNamespace(client=None, method="GET")
    first = portal.call(ingress.live, http, "alice")
    peer = portal.call(offer)
    assert portal.call(post_offer, ingress, peer) == 201
    with client.websocket_connect("/sessions/alice/ws") as socket:
        assert socket.receive_json()["type"] == "ready"
        socket.send_json({"type": "watch", "id": "w"})
        assert socket.receive_bytes()[4:8] == b"ftyp" and ingress._hubs.viewers() == 3
        answer = client.get("/sessions/alice/live.mp4")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        assert error_of(answer)["message"] == FULL
        late = client.post("/sessions/alice/whep", content=portal.call(offer).localDescription.sdp, headers=SDP)
        assert (late.status_code, error_of(late)["message"]) == (429, FULL)
        with client.websocket_connect("/sessions/alice/ws") as other:
            assert other.receive_json()["type"] == "ready"  # it may speak, but not watch
            other.send_json({"type": "watch", "id": "late"})
            event = other.receive_json()
            assert (event["id"], event["error"]["message"]) == ("late", FULL)
    until(lambda: ingress._hubs.viewers() == 2)  # the first connection has ended
    portal.call(first.body_iterator.aclose)
    portal.call(ingress._whep.peers.stop)
    until(lambda: ingress._hubs.viewers() <= 1)


async def offer() -> Any:
    aiortc = pytest.importorskip("aiortc")
    connection = aiortc.RTCPeerConnection()
    connection.addTransceiver("video", direction="recvonly")
    await connection.setLocalDescription(await connection.createOffer())
    return connection


async def post_offer(ingress: Any, connection: Any) -> int:
    async def body() -> bytes:
        return str(connection.localDescription.sdp).encode()

    answer = await ingress.whep(SimpleNamespace(body=body, headers=SDP, scope={}), "alice")
    return int(answer.status_code)


async def watch_on_and_off(ingress: Any, times: int) -> None:
    """Switch watching on and off on a connection, faster than the stream can start."""
    from deployments.common.text_stream import WriterLimits
    from deployments.ingress.websocket.connection import Connection
    from deployments.ingress.websocket.protocol import Watch

    async def nothing(*arguments: Any) -> None:
        await asyncio.sleep(0)

    socket = SimpleNamespace(client=None, send_bytes=nothing, send_text=nothing)
    limits = WriterLimits.from_config(ingress.config)
    parts = (ingress._stitch, ingress._chat, ingress._hubs, ingress._transcriptions, ingress._uploads, limits)
    connection = Connection(socket, "alice", *parts)  # type: ignore[arg-type]
    for _ in range(times):
        await connection._watch(Watch(type="watch", on=True))
        await connection._watch(Watch(type="watch", on=False))


def test_a_stream_that_is_stopped_before_it_starts_leaves_no_viewer(serve):
    client = serve(max_viewers=2)
    ingress = client.stages["Ingress"]
    client.portal.call(watch_on_and_off, ingress, 5)
    until(lambda: ingress._hubs.viewers() == 0)


# --- WebSockets


def test_websockets_are_limited_and_a_closed_one_makes_room(serve):
    client = serve(max_sockets=2)
    url = "/sessions/alice/ws"
    with client.websocket_connect(url) as one, client.websocket_connect(url) as two:
        assert one.receive_json()["type"] == two.receive_json()["type"] == "ready"
        with client.websocket_connect(url) as three:
            event = three.receive_json()
            assert (event["type"], event["error"]["code"]) == ("failed", "busy") and "WebSockets" in str(event)
            assert three.receive()["code"] == 4429
    until(lambda: client.stages["Ingress"]._sockets.active == 0)
    with client.websocket_connect(url) as again:
        assert again.receive_json()["type"] == "ready"


# --- queued utterances


async def test_the_queue_of_one_session_is_limited_and_does_not_delay_others(make_stitch):
    stitch, _, _ = await make_stitch(delay_s=0.2, max_waiting_session=2)
    mine = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "words")))) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(BusyError, match="2 utterances of this session wait already"):
        await summary_of(stitch.speak(SpeakRequest("alice", "words")))
    assert (await summary_of(stitch.speak(SpeakRequest("bob", "words"))))["frames"] > 0
    assert [summary["frames"] > 0 for summary in await asyncio.gather(*mine)] == [True] * 3
    assert (await summary_of(stitch.speak(SpeakRequest("alice", "words"))))["frames"] > 0
