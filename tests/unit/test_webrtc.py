"""WebRTC: a real aiortc client sees the same frames as every viewer, in time, and hears what is said."""

import asyncio
import contextlib
import time

import numpy as np
import pytest

from deployments.live import Live
from deployments.webrtc import Peers, annex_b
from models.errors import InputError, NotFoundError
from models.stitch.boxes import length_prefixed
from models.stitch.encode import UtteranceEncoder
from models.stitch.live import encode_idle, split
from tests.unit.live_material import RATE, SPEC
from tests.unit.test_live import AVATAR, LINE, Stitch

aiortc = pytest.importorskip("aiortc")


@pytest.fixture
async def air(tmp_path):
    path = tmp_path / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    stitch = Stitch(path, 100)
    on_air, peers = Live(stitch.subscribe, lambda: 100), Peers()
    yield stitch, on_air, peers
    await peers.stop()
    await on_air.stop()


class Client:
    """Receives a session: greys of the frames, and the sound, with the times at which they came."""

    def __init__(self) -> None:
        self.connection = aiortc.RTCPeerConnection()
        self.greys, self.came_s, self.sound = [], [], []
        self.tasks = []
        self.connection.on("track", lambda track: self.tasks.append(asyncio.create_task(self._take(track))))

    async def watch(self, on_air: Live, peers: Peers) -> str:
        for kind in ("video", "audio"):
            self.connection.addTransceiver(kind, direction="recvonly")
        await self.connection.setLocalDescription(await self.connection.createOffer())
        peer_id, answer = await peers.offer(self.connection.localDescription.sdp, lambda: on_air.view("alice"))
        await self.connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
        return peer_id

    async def _take(self, track) -> None:
        while True:
            frame = await track.recv()
            if track.kind == "video":
                self.greys.append(float(frame.to_ndarray(format="rgb24").mean()))
                self.came_s.append(time.monotonic())
            else:
                self.sound.append((time.monotonic(), float(np.abs(frame.to_ndarray()).max())))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.connection.close()


async def test_an_aiortc_client_sees_the_line_and_hears_the_speech(air):
    stitch, on_air, peers = air
    client = Client()
    peer_id = await client.watch(on_air, peers)
    await asyncio.sleep(1.0)
    place = on_air._running()[0]._loop.grid.ceil(stitch.clock.position(time.time() + 0.4))
    tone = (0.5 * np.sin(np.arange(RATE * 24 // 25) / 10)).astype(np.float32)
    pictures = np.stack([AVATAR[k] for k in LINE[place : place + 24]])
    for fragment in UtteranceEncoder(SPEC).push(pictures, tone, last=True):
        for piece in split(fragment, place + fragment.video_start // SPEC.frame_ticks, 1, fragment.video_start == 0):
            stitch.send(piece)
    async with asyncio.timeout(20) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
        while len(client.greys) < 70:
            await asyncio.sleep(0.1)
    await client.close()
    seen = np.array(client.greys)
    expected = 20.0 + 4 * LINE
    first = min(range(80, 140), key=lambda p: np.abs(seen - expected[p : p + len(seen)]).sum())
    assert np.mean(np.abs(seen - expected[first : first + len(seen)]) < 2.5) > 0.95  # frames may be lost, few are
    assert np.median(np.diff(client.came_s)) == pytest.approx(0.04, abs=0.02)  # one by one, not four at once
    loud = [came_s for came_s, peak in client.sound if peak > 5000]
    assert loud and loud[-1] - loud[0] == pytest.approx(0.96, abs=0.25)
    with pytest.raises(NotFoundError):
        await peers.end("nobody")
    if len(peers):
        await peers.end(peer_id)
    assert len(peers) == 0 and on_air.viewers() == 0


async def test_what_is_no_offer_is_refused_and_leaves_nothing(air):
    _, on_air, peers = air
    for sdp in ("", "hello", "v=0\r\n"):
        with pytest.raises(InputError):
            await peers.offer(sdp, lambda: on_air.view("alice"))
    assert len(peers) == 0 and on_air.viewers() == 0


def test_samples_become_annex_b_again():
    unit = bytes([0x65, 1, 2, 3])
    assert annex_b(length_prefixed(b"\0\0\0\1" + unit + b"\0\0\1" + unit)) == b"\0\0\0\1" + unit + b"\0\0\0\1" + unit
