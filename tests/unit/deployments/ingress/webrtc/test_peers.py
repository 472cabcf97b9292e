"""WebRTC connections: a real aiortc client sees the frames that every viewer sees, and hears the speech."""

import asyncio
import contextlib
import re
import time
import uuid

import numpy as np
import pytest

from configs.schema import IngressConfig
from deployments.ingress.live.hubs import Hubs
from deployments.ingress.webrtc import peers as peers_module
from deployments.ingress.webrtc.peers import Peers, video_codec
from models.errors import BusyError, InputError, NotConfiguredError, NotFoundError, SessionNotFound
from models.live.timeline import encode_idle, split_fragment
from models.media.encode import UtteranceEncoder
from tests.support.live import AVATAR, PLAYBACK, RATE, SPEC, FakeStitch

aiortc = pytest.importorskip("aiortc")


@pytest.fixture
async def live(tmp_path):
    path = tmp_path / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    stitch = FakeStitch(path, 100)
    hubs, peers = Hubs(stitch.subscribe, lambda: 100), Peers(lambda: IngressConfig(max_webrtc_viewers=2))
    yield stitch, hubs, peers
    await peers.stop()
    await hubs.stop()


class Client:
    """Receives a session: the grey levels of the frames, and the peaks of the sound, with their arrival times."""

    def __init__(self) -> None:
        self.connection = aiortc.RTCPeerConnection()
        self.greys, self.came_s, self.sound = [], [], []
        self.tasks = []
        self.connection.on("track", lambda track: self.tasks.append(asyncio.create_task(self._take(track))))

    async def offer(self, video: str = "H264") -> str:
        """An offer to receive video with this codec only, and audio."""
        for kind in ("video", "audio"):
            transceiver = self.connection.addTransceiver(kind, direction="recvonly")
            if kind == "video":
                known = aiortc.RTCRtpReceiver.getCapabilities("video").codecs
                transceiver.setCodecPreferences([c for c in known if c.mimeType == f"video/{video}"])
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def watch(self, hubs: Hubs, peers: Peers, video: str = "H264", hidden: bool = False) -> str:
        """hidden: with multicast DNS names instead of addresses, as browsers do for pages without permissions."""
        offer = await self.offer(video)
        if hidden:
            offer, count = re.subn(r"(a=candidate:\S+ 1 udp \d+) \S+", rf"\1 {uuid.uuid4()}.local", offer)
            assert count and "a=end-of-candidates" in offer
        peer_id, answer = await peers.offer(offer, lambda: hubs.view("alice"))
        self.codec = video_codec(answer)
        await self.connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
        return peer_id

    async def seen(self, frames: int, timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
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


async def test_an_aiortc_client_sees_the_session_and_hears_its_speech(live):
    stitch, hubs, peers = live
    client = Client()
    peer_id = await client.watch(hubs, peers)
    await asyncio.sleep(1.0)
    place = hubs._running()[0]._loop.grid.ceil(stitch.clock.position(time.time() + 0.4))
    tone = (0.5 * np.sin(np.arange(RATE * 24 // 25) / 10)).astype(np.float32)
    pictures = np.stack([AVATAR[k] for k in PLAYBACK[place : place + 24]])
    for fragment in UtteranceEncoder(SPEC).push(pictures, tone, last=True):
        for piece in split_fragment(
            fragment, place + fragment.video_start // SPEC.frame_ticks, 1, fragment.video_start == 0
        ):
            stitch.send(piece)
    await client.seen(70)
    await client.close()
    assert client.codec == "H264" and share_in_order(client.greys) > 0.8  # a busy machine may lose some
    loud = sum(peak > 5000 for _, peak in client.sound)
    assert loud * 0.02 == pytest.approx(0.96, abs=0.3)  # 20 ms per frame
    with pytest.raises(NotFoundError):
        await peers.end("nobody")
    with contextlib.suppress(NotFoundError):  # it may have noticed already that the client left
        await peers.end(peer_id)
    assert len(peers) == 0 and hubs.viewers() == 0


async def until(true, timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


def share_in_order(greys: list[float]) -> float:
    """The share of the frames that show the session in order, without a gap."""
    seen, expected = np.array(greys), 20.0 + 4 * PLAYBACK
    first = min(range(80, 140), key=lambda p: np.abs(seen - expected[p : p + len(seen)]).sum())
    return float(np.mean(np.abs(seen - expected[first : first + len(seen)]) < 2.5))


async def test_a_client_without_h264_gets_vp8(live):
    _, hubs, peers = live
    client = Client()
    await client.watch(hubs, peers, video="VP8")
    await client.seen(40)
    await client.close()
    assert client.codec == "VP8" and share_in_order(client.greys) > 0.8


async def test_a_client_with_hidden_addresses_is_found_by_its_first_packet(live, monkeypatch):
    _, hubs, peers = live
    client, resolved = Client(), []
    monkeypatch.setattr("aioice.mdns.create_mdns_protocol", lambda: resolved.append("a name") or 1 / 0)
    await client.watch(hubs, peers, hidden=True)
    assert resolved == []  # it would take seconds
    await client.seen(25)
    await client.close()
    assert share_in_order(client.greys) > 0.8


async def test_an_invalid_offer_is_refused_and_leaves_nothing(live):
    _, hubs, peers = live
    client = Client()
    offer = await client.offer()
    for sdp in ("", "hello", "v=0\r\n", offer.replace("H264", "AV1"), offer[: len(offer) // 3]):
        with pytest.raises(InputError):
            await peers.offer(sdp, lambda: hubs.view("alice"))
        assert len(peers) == 0 and hubs.viewers() == 0
    await client.close()


async def test_an_unknown_session_does_not_count_as_a_viewer(live):
    stitch, hubs, peers = live
    client = Client()
    offer = await client.offer()
    for _ in range(3):  # one more than the limit
        stitch.errors.append(SessionNotFound("There is no session 'alice'.", "Open it."))
        with pytest.raises(SessionNotFound):
            await peers.offer(offer, lambda: hubs.view("alice"))
    await client.close()
    assert len(peers) == 0


async def test_the_number_of_viewers_is_limited_until_one_leaves(live):
    _, hubs, peers = live
    clients = [Client() for _ in range(3)]
    offers = [await client.offer() for client in clients]
    taken = [await peers.offer(offer, lambda: hubs.view("alice")) for offer in offers[:2]]
    with pytest.raises(BusyError):
        await peers.offer(offers[2], lambda: hubs.view("alice"))
    assert hubs.viewers() == 2
    await peers.end(taken[0][0])
    await peers.offer(offers[2], lambda: hubs.view("alice"))
    for client in clients:
        await client.close()


async def test_nothing_remains_of_a_client_that_never_connects(live, monkeypatch):
    _, hubs, peers = live
    monkeypatch.setattr(peers_module, "CONNECT_TIMEOUT_S", 0.2)
    client = Client()
    offer = await client.offer()
    async with contextlib.AsyncExitStack() as hub:
        hub.callback((await hubs.view("alice")).close)  # so that the hub's own tasks exist before and after
        before = asyncio.all_tasks()
        await peers.offer(offer, lambda: hubs.view("alice"))
        assert hubs.viewers() == 2
        await until(lambda: asyncio.all_tasks() <= before)
        assert len(peers) == 0 and hubs.viewers() == 1
    await client.close()


async def test_nothing_remains_of_a_client_that_left(live):
    _, hubs, peers = live
    async with contextlib.AsyncExitStack() as hub:
        hub.callback((await hubs.view("alice")).close)
        before = asyncio.all_tasks()
        client = Client()
        await client.watch(hubs, peers)
        await client.seen(10)
        assert len(peers) == 1 and len(asyncio.all_tasks()) > len(before) + 5
        await client.close()
        await until(lambda: asyncio.all_tasks() <= before)
        assert len(peers) == 0 and hubs.viewers() == 1


async def test_a_viewer_can_skip_what_arrived_while_it_connected(live):
    _, hubs, _ = live
    viewer = await hubs.view("alice")
    await asyncio.sleep(0.4)
    last = viewer._queue[-1]
    assert len(viewer._queue) >= 3
    viewer.skip_to_edge()
    assert list(viewer._queue) == [last] and last.key
    viewer.close()


def test_without_webrtc_the_error_says_why(monkeypatch):
    with pytest.raises(NotConfiguredError, match="max_webrtc_viewers"):
        Peers(lambda: IngressConfig(max_webrtc_viewers=0)).check_available()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotConfiguredError, match="pip install"):
        Peers(IngressConfig).check_available()


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
def test_the_first_video_codec_of_a_description(sdp, codec):
    assert video_codec(sdp) == codec
