"""Live sessions on a real Ray: an endless stream with speech in it, an interruption, a WebSocket, WebRTC."""

import asyncio
import json
import threading
import time

import httpx
import numpy as np
import pytest

from benchmarks.viewers import Recording
from tests.graph.media import decode
from tests.graph.requests import speak, wait_until

pytestmark = pytest.mark.ray

LONG = "This is a rather long sentence, which somebody is going to interrupt long before it has ended. " * 3


class Viewer(threading.Thread):
    """Watches a session live until `stop`."""

    def __init__(self, client: httpx.Client, session_id: str) -> None:
        super().__init__(daemon=True)
        self._client, self._url = client, f"/sessions/{session_id}/live.mp4"
        self._stopped, self.begun, self.data = False, threading.Event(), b""
        self.start()
        assert self.begun.wait(30)

    def run(self) -> None:
        with self._client.stream("GET", self._url) as answer:
            for part in answer.iter_raw():
                self.data += part
                self.begun.set()
                if self._stopped:
                    return

    def stop(self) -> Recording:
        self._stopped = True
        self.join(5)
        whole = Recording()
        end = 0
        while end + 8 <= len(self.data) and end + (size := int.from_bytes(self.data[end : end + 4])) <= len(self.data):
            end += size
        whole.take(self.data[:end])
        return whole


@pytest.fixture(scope="module")
def warm(client: httpx.Client) -> httpx.Client:
    speak(client, "Warm up.", session_id="warm")
    return client


def test_a_viewer_gets_idle_motion_and_speech_without_a_gap(warm):
    assert warm.post("/sessions", json={"session_id": "watched"}).status_code == 201
    viewer = Viewer(warm, "watched")
    time.sleep(1)
    answer = warm.post("/speak", json={"text": "Hello there, this is live.", "session_id": "watched"}).json()
    time.sleep(1)
    recording = viewer.stop()
    np.testing.assert_allclose(np.diff(recording.times()), 0.04, atol=1e-3)
    spans = recording.loud_s()
    assert len(spans) == 1 or answer["live"]["holds"]  # on a busy machine playout may hold, and the answer says so
    assert spans[0][0] > 0.5 and sum(e - s for s, e in spans) == pytest.approx(answer["duration_s"], abs=0.8)
    assert answer["live"]["shown_frames"] == answer["frames"]
    facts = warm.get("/sessions/watched").json()
    assert facts["frames"] == answer["frames"]  # idle motion before and after is not recorded
    vtt = warm.get("/sessions/watched/captions.vtt").text
    assert "Hello there, this is live." in vtt
    assert "#EXT-X-MAP" in warm.get("/sessions/watched/index.m3u8").text
    assert len(decode(warm.get("/sessions/watched/download.mp4").content).frames) == answer["frames"]


def test_an_interruption_stops_rendering(warm):
    from ray import serve

    def rendered() -> int:
        return int(serve.get_deployment_handle("LipSync", "warmtalk").stats.remote().result()["batched_frames"])

    warm.post("/sessions", json={"session_id": "cut"}).raise_for_status()
    viewer, said = Viewer(warm, "cut"), {}
    thread = threading.Thread(
        target=lambda: said.update(warm.post("/speak", json={"text": LONG, "session_id": "cut"}).json())
    )
    thread.start()
    wait_until(lambda: warm.get("/sessions/cut").json()["frames"] > 8, "speech is shown")
    assert warm.post("/sessions/cut/interrupt").json()["interrupted"] == 1
    after = rendered()
    thread.join(60)
    time.sleep(1.0)
    assert rendered() - after <= 24  # at most the window of 3 chunks that had been sent; over 300 frames remained
    viewer.stop()
    (line,) = warm.get("/sessions/cut").json()["utterances"]
    assert said["interrupted"] and line["interrupted"] and line["end_s"] < 12  # of about 16 s
    assert len(decode(warm.get("/sessions/cut/video.mp4").content).frames) == said["frames"] < said["made_s"] * 25 + 1
    assert 0 < said["live"]["shown_frames"] <= said["frames"]  # without idle motion


def test_errors_of_live_routes_and_a_closed_session(warm):
    for path in ("/sessions/nobody/live.mp4", "/sessions/nobody/captions.vtt", "/sessions/nobody/index.m3u8"):
        answer = warm.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")
    assert warm.post("/sessions/nobody/close").status_code == 404
    assert warm.post("/sessions", json={"session_id": "watched"}).json()["error"]["code"] == "exists"
    assert warm.post("/sessions/watched/close").json()["closed"]
    late = warm.post("/speak", json={"text": "Too late.", "session_id": "watched"})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "session_closed")
    assert warm.get("/sessions/watched/index.m3u8").text.endswith("#EXT-X-ENDLIST\n")


def test_a_websocket_speaks_and_shows(warm, graph):
    from websockets.sync.client import connect

    warm.post("/sessions", json={"session_id": "socket"}).raise_for_status()
    with connect(f"{graph.url.replace('http', 'ws')}/sessions/socket/ws", max_size=None) as socket:
        assert json.loads(socket.recv(10))["type"] == "ready"
        socket.send(json.dumps({"type": "watch"}))
        assert socket.recv(20)[4:8] == b"ftyp"
        for word in ("Hello ", "over ", "a ", "socket."):
            socket.send(json.dumps({"type": "text", "text": word, "last": word == "socket.", "id": "1"}))
        pieces, events = 0, []
        while "done" not in [event["type"] for event in events]:
            message = socket.recv(60)
            pieces += isinstance(message, bytes)
            events += [] if isinstance(message, bytes) else [json.loads(message)]
        kinds = [event["type"] for event in events]
        assert (kinds[0], kinds[-1]) == ("started", "done") and {"making", "caption"} <= set(kinds) and pieces > 5
        assert events[-1]["summary"]["frames"] > 10


async def test_a_webrtc_player_gets_picture_and_sound_in_time_and_leaves_nothing(warm, graph):
    """Idle motion and speech, decoded by aiortc; it leaves once by DELETE and once by closing its connection."""
    pytest.importorskip("aiortc")
    from benchmarks.live import Viewer as Watcher
    from benchmarks.webrtc import Player, lateness_s, sound_after_picture_s

    async with httpx.AsyncClient(base_url=graph.url, timeout=60) as client:
        (await client.post("/sessions", json={"session_id": "rtc"})).raise_for_status()
        watcher = Watcher(client, "rtc")
        await watcher.started.wait()
        before = await counted()
        player = await Player(client, "rtc").play()
        await player.seen(25)
        assert (await counted())["webrtc"] == 1
        (
            await client.post("/speak", json={"text": "Hello there, this is WebRTC.", "session_id": "rtc"})
        ).raise_for_status()
        await asyncio.sleep(1.5)
        assert (await client.delete(player.resource)).status_code == 200
        async with asyncio.timeout(10):  # the server's last packet may arrive after its answer
            while player.connection.connectionState != "closed":
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)  # what was on its way arrives
        seen = len((got := player.received).came_s)
        await asyncio.sleep(0.5)
        assert len(got.came_s) == seen > 50
        assert np.abs(np.concatenate(got.sound)).max() > 2000  # of int16: speech was heard
        live = await watcher.stop()
        late_s = lateness_s(got, live.data, live.came_s)
        assert len(late_s) > 0.8 * seen and np.median(late_s) < 1.0  # not by a whole buffer of live.mp4
        parts_s = sound_after_picture_s(got, (await client.get("/sessions/rtc/video.mp4")).content)
        assert abs(parts_s) < 0.08, parts_s
        again = await Player(client, "rtc").play()
        await again.seen(10)
        await again.stop()
        missing = await client.delete(again.resource)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        end_s = time.monotonic() + 30
        while (after := await counted())["webrtc"] or after["tasks"] > before["tasks"] + 2:
            assert time.monotonic() < end_s, (before, after)
            await asyncio.sleep(0.1)
        assert after["viewers"] == before["viewers"] - 1  # the watcher has left, too


async def counted() -> dict:
    from ray import serve

    return await serve.get_deployment_handle("Ingress", "warmtalk").stats.remote()
