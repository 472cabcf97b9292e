"""WebRTC: a real aiortc client sees the same frames as every viewer, in time, and hears what is said."""

import asyncio
import contextlib
import re
import time
import uuid

import numpy as np
import pytest

from configs.schema import IngressConfig
from deployments.ingress.live.hubs import Live
from deployments.ingress.webrtc import peers as webrtc
from deployments.ingress.webrtc.peers import Peers, video_codec
from models.errors import BusyError, InputError, NotConfiguredError, NotFoundError, SessionNotFound
from models.live.timeline import encode_idle, split_fragment
from models.media.encode import UtteranceEncoder
from tests.support.live import RATE, SPEC
from tests.unit.deployments.ingress.live.test_hubs import AVATAR, LINE, Stitch

aiortc = pytest.importorskip("aiortc")


@pytest.fixture
async def air(tmp_path):
    path = tmp_path / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    stitch = Stitch(path, 100)
    on_air, peers = Live(stitch.subscribe, lambda: 100), Peers(lambda: IngressConfig(max_webrtc_viewers=2))
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

    async def offer(self, video: str = "H264") -> str:
        """An offer to receive, with the video codecs of this name alone."""
        for kind in ("video", "audio"):
            transceiver = self.connection.addTransceiver(kind, direction="recvonly")
            if kind == "video":
                known = aiortc.RTCRtpReceiver.getCapabilities("video").codecs
                transceiver.setCodecPreferences([c for c in known if c.mimeType == f"video/{video}"])
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def watch(self, on_air: Live, peers: Peers, video: str = "H264", hidden: bool = False) -> str:
        """hidden: with names in place of its addresses, as browsers offer them to whom they do not trust."""
        offer = await self.offer(video)
        if hidden:
            offer, count = re.subn(r"(a=candidate:\S+ 1 udp \d+) \S+", rf"\1 {uuid.uuid4()}.local", offer)
            assert count and "a=end-of-candidates" in offer
        peer_id, answer = await peers.offer(offer, lambda: on_air.view("alice"))
        self.codec = video_codec(answer)
        await self.connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
        return peer_id

    async def seen(self, frames: int, within_s: float = 20.0) -> None:
        end_s = time.monotonic() + within_s
        while len(self.greys) < frames:
            assert time.monotonic() < end_s, f"only {len(self.greys)} frames"
            await asyncio.sleep(0.05)

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
        for piece in split_fragment(
            fragment, place + fragment.video_start // SPEC.frame_ticks, 1, fragment.video_start == 0
        ):
            stitch.send(piece)
    await client.seen(70)
    await client.close()
    assert client.codec == "H264" and on_line(client.greys) > 0.95  # frames may be lost, few are
    assert np.median(np.diff(client.came_s)) == pytest.approx(0.04, abs=0.02)  # one by one, not four at once
    loud = [came_s for came_s, peak in client.sound if peak > 5000]
    assert loud and loud[-1] - loud[0] == pytest.approx(0.96, abs=0.25)
    with pytest.raises(NotFoundError):
        await peers.end("nobody")
    if len(peers):
        await peers.end(peer_id)
    assert len(peers) == 0 and on_air.viewers() == 0


def on_line(greys: list[float]) -> float:
    """The share of frames that show what the line shows, one after the other."""
    seen, expected = np.array(greys), 20.0 + 4 * LINE
    first = min(range(80, 140), key=lambda p: np.abs(seen - expected[p : p + len(seen)]).sum())
    return float(np.mean(np.abs(seen - expected[first : first + len(seen)]) < 2.5))


async def test_a_client_without_h264_gets_vp8_coded_for_it(air):
    _, on_air, peers = air
    client = Client()
    await client.watch(on_air, peers, video="VP8")
    await client.seen(40)
    await client.close()
    assert client.codec == "VP8" and on_line(client.greys) > 0.9


async def test_a_client_that_hides_its_addresses_is_found_by_its_first_packet(air):
    _, on_air, peers = air
    client, asked_s = Client(), time.monotonic()
    await client.watch(on_air, peers, hidden=True)
    assert time.monotonic() - asked_s < 3  # nobody was asked for the name
    await client.seen(25)
    await client.close()
    assert on_line(client.greys) > 0.9


async def test_what_is_no_offer_is_refused_and_leaves_nothing(air):
    _, on_air, peers = air
    client = Client()
    offer = await client.offer()
    for sdp in ("", "hello", "v=0\r\n", offer.replace("H264", "AV1"), offer[: len(offer) // 3]):
        with pytest.raises(InputError):
            await peers.offer(sdp, lambda: on_air.view("alice"))
        assert len(peers) == 0 and on_air.viewers() == 0
    await client.close()


async def test_a_session_that_is_none_takes_no_place(air):
    stitch, on_air, peers = air
    client = Client()
    offer = await client.offer()
    for _ in range(3):  # one more than there are places
        stitch.fails.append(SessionNotFound("There is no session 'alice'.", "Open it."))
        with pytest.raises(SessionNotFound):
            await peers.offer(offer, lambda: on_air.view("alice"))
    await client.close()
    assert len(peers) == 0


async def test_more_viewers_than_are_allowed_are_refused_until_one_has_gone(air):
    _, on_air, peers = air
    clients = [Client() for _ in range(3)]
    offers = [await client.offer() for client in clients]
    taken = [await peers.offer(offer, lambda: on_air.view("alice")) for offer in offers[:2]]
    with pytest.raises(BusyError):
        await peers.offer(offers[2], lambda: on_air.view("alice"))
    assert on_air.viewers() == 2
    await peers.end(taken[0][0])
    await peers.offer(offers[2], lambda: on_air.view("alice"))
    for client in clients:
        await client.close()


async def test_a_client_that_never_comes_is_forgotten_with_all_it_held(air, monkeypatch):
    _, on_air, peers = air
    monkeypatch.setattr(webrtc, "CONNECT_S", 0.5)
    client = Client()
    offer = await client.offer()
    async with contextlib.AsyncExitStack() as hub:
        hub.callback((await on_air.view("alice")).close)  # so that the hub's own tasks are there before and after
        before = asyncio.all_tasks()
        await peers.offer(offer, lambda: on_air.view("alice"))
        assert on_air.viewers() == 2
        await asyncio.sleep(1.5)
        assert len(peers) == 0 and on_air.viewers() == 1
        assert asyncio.all_tasks() <= before
    await client.close()


async def test_a_client_that_leaves_is_forgotten_with_all_it_held(air):
    _, on_air, peers = air
    async with contextlib.AsyncExitStack() as hub:
        hub.callback((await on_air.view("alice")).close)
        before = asyncio.all_tasks()
        client = Client()
        await client.watch(on_air, peers)
        await client.seen(10)
        assert len(peers) == 1 and len(asyncio.all_tasks()) > len(before) + 5
        await client.close()
        end_s = time.monotonic() + 5
        while asyncio.all_tasks() - before and time.monotonic() < end_s:
            await asyncio.sleep(0.05)
        assert asyncio.all_tasks() <= before
        assert len(peers) == 0 and on_air.viewers() == 1


async def test_what_came_while_a_client_connected_is_left_out(air):
    _, on_air, _ = air
    viewer = await on_air.view("alice")
    await asyncio.sleep(0.4)
    last = viewer._queue[-1]
    assert len(viewer._queue) >= 3
    viewer.to_edge()
    assert list(viewer._queue) == [last] and last.key
    viewer.close()


def test_where_webrtc_is_missing_or_switched_off_it_is_said(monkeypatch):
    with pytest.raises(NotConfiguredError, match="max_webrtc_viewers"):
        Peers(lambda: IngressConfig(max_webrtc_viewers=0)).check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotConfiguredError, match="pip install"):
        Peers(IngressConfig).check()


@pytest.mark.parametrize(
    ("sdp", "codec"),
    [
        ("v=0\r\nm=video 9 RTP 102 97\r\na=rtpmap:97 VP8/90000\r\na=rtpmap:102 H264/90000\r\n", "H264"),
        ("m=video 9 RTP 97 102\r\na=rtpmap:97 VP8/90000\r\na=rtpmap:102 H264/90000\r\n", "VP8"),
        ("m=video 9 RTP 97\r\nm=audio 9 RTP 97\r\na=rtpmap:97 opus/48000/2\r\n", ""),
        ("m=video 0 RTP 97\r\na=rtpmap:97 VP8/90000\r\n", ""),
        ("m=audio 9 RTP 97\r\na=rtpmap:97 opus/48000/2\r\n", ""),
    ],
)
def test_a_descriptions_first_video_codec(sdp, codec):
    assert video_codec(sdp) == codec
