"""A WHEP player over aiortc that measures the lateness of frames and the offset of sound and picture.

The lateness of a frame is the time from its due time on the session's clock to its pixels being here. The due time is
read from live.mp4 of the same session, whose fragments are sent when their first frame is due. Frames are identified by
their pixels, which are bit-exact. The offset of sound and picture follows the sender reports (RFC 3550, 6.4.1), as a
browser uses them, and is measured against the same words in the session's file.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from dataclasses import dataclass, field
from typing import Any

import av
import httpx
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from benchmarks.viewers import Viewer

SDP = {"Content-Type": "application/sdp"}
RATE = 24_000  # sample rate of the session, and of the comparison, Hz
OPUS_HZ = 48_000
CLOCKS = {"video": 90_000, "audio": OPUS_HZ}
NTP_UNIX_S = 2_208_988_800  # seconds from 1900 to 1970
NEAR_FRAMES = 8  # the earliest fragment within this distance gives the clock; a larger one would include delays
FPS = 25


@dataclass
class Received:
    """The received frames (as hashes) and audio, with arrival and RTP times."""

    came_s: list[float] = field(default_factory=list)  # wall clock, per decoded frame
    pictures: list[str] = field(default_factory=list)
    picture_rtp: list[int] = field(default_factory=list)  # from the first frame on, 90 kHz
    sound: list[Any] = field(default_factory=list)  # int16, mono
    sound_rtp: list[int] = field(default_factory=list)  # from the first packet on, 48 kHz
    origin: dict[str, int] = field(default_factory=dict)  # RTP time of the first packet
    reports: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # (Unix time in s, RTP time)

    def ntp_s(self, kind: str, rtp: Any) -> Any:
        """When the media with this RTP time, relative to the first packet, is to be played, on the sender's clock."""
        # a report that is sent late is late by that time, so the earliest one is the best
        zero_s = min(
            ntp_s - ((at - self.origin[kind] + 2**31) % 2**32 - 2**31) / CLOCKS[kind]
            for ntp_s, at in self.reports[kind]
        )
        return zero_s + np.asarray(rtp) / CLOCKS[kind]


def pixels(frame: av.VideoFrame) -> str:
    """A hash of the frame's pixels."""
    return hashlib.md5(frame.to_ndarray().tobytes(), usedforsecurity=False).hexdigest()


class Player:
    """Plays a session over WHEP. keep: record what is received."""

    def __init__(self, client: httpx.AsyncClient, session_id: str, codec: str = "H264", keep: bool = True) -> None:
        self.received, self._keep = Received(), keep
        self._client, self._path, self._codec = client, f"/sessions/{session_id}/whep", codec
        self.connection = RTCPeerConnection(RTCConfiguration([]))
        self.resource = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.connection.on("track", self._take_track)

    async def play(self) -> Player:
        """Connect. Raises httpx.HTTPStatusError."""
        for kind in ("video", "audio"):
            transceiver = self.connection.addTransceiver(kind, direction="recvonly")
            if kind == "video":
                known = RTCRtpReceiver.getCapabilities("video").codecs
                transceiver.setCodecPreferences([c for c in known if c.mimeType == f"video/{self._codec}"])
        await self.connection.setLocalDescription(await self.connection.createOffer())
        answer = await self._client.post(self._path, content=self.connection.localDescription.sdp, headers=SDP)
        answer.raise_for_status()
        self.resource = answer.headers["location"]
        await self.connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        return self

    async def seen(self, frames: int, within_s: float = 30.0) -> None:
        """Wait until that many frames have arrived. Raises TimeoutError."""
        end_s = time.monotonic() + within_s
        while len(self.received.came_s) < frames:
            if time.monotonic() > end_s:
                raise TimeoutError(f"{len(self.received.came_s)} of {frames} frames arrived in {within_s:g} s")
            await asyncio.sleep(0.02)

    async def stop(self) -> Received:
        """Close the connection without a WHEP DELETE."""
        await self.connection.close()
        for task in self._tasks:
            task.cancel()
        return self.received

    def _take_track(self, track: Any) -> None:
        for receiver in self.connection.getReceivers():
            if receiver.track is track:
                self._record_reports(receiver, track.kind)
        self._tasks.append(asyncio.create_task(self._take(track)))

    def _record_reports(self, receiver: Any, kind: str) -> None:
        """Record RTP times and sender reports, which aiortc does not expose."""
        rtcp, mapper = receiver._handle_rtcp_packet, receiver._RTCRtpReceiver__timestamp_mapper

        async def on_rtcp(packet: Any) -> None:
            if (info := getattr(packet, "sender_info", None)) is not None and info.ntp_timestamp:
                self.received.origin[kind] = mapper._origin or 0
                report = (info.ntp_timestamp / 2**32 - NTP_UNIX_S, info.rtp_timestamp)
                self.received.reports.setdefault(kind, []).append(report)
            await rtcp(packet)

        receiver._handle_rtcp_packet = on_rtcp

    async def _take(self, track: Any) -> None:
        got = self.received
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            if not self._keep:
                continue
            if track.kind == "video":
                got.came_s.append(time.time())
                got.pictures.append(pixels(frame))
                got.picture_rtp.append(frame.pts)
            else:
                got.sound.append(frame.to_ndarray()[0].reshape(-1, len(frame.layout.channels))[:, 0])
                got.sound_rtp.append(frame.pts)


async def late_and_apart(client: httpx.AsyncClient, text: str) -> dict[str, float]:
    """Lateness of frames, and offset of sound and picture, while a session idles, speaks and idles again."""
    (await client.post("/sessions", json={"session_id": "rtc"})).raise_for_status()
    watcher = Viewer(client, "rtc")
    await watcher.started.wait()
    player = await Player(client, "rtc").play()
    await player.seen(50)
    answer = await client.post("/speak", json={"text": text, "session_id": "rtc"})
    await asyncio.sleep(2)
    got, live = await player.stop(), await watcher.stop()
    late_s = lateness_s(got, live.data, live.came_s)
    file = (await client.get("/sessions/rtc/video.mp4")).content
    return {
        "webrtc_late_s": float(np.median(late_s)),
        "webrtc_late_p95_s": float(np.percentile(late_s, 95)),
        "webrtc_apart_s": abs(sound_after_picture_s(got, file)),
        "webrtc_missing": float(answer.raise_for_status().json()["frames"] - len(said_frames(got, file))),
    }


def said_frames(got: Received, file: bytes) -> set[str]:
    """The session's frames that were received."""
    with av.open(io.BytesIO(file)) as container:
        return {pixels(frame) for frame in container.decode(video=0)} & set(got.pictures)


def lateness_s(got: Received, live: bytes, live_came_s: list[float]) -> Any:
    """From the due time of each frame to its arrival, s. live_came_s: arrival times of live.mp4's frames."""
    with av.open(io.BytesIO(live)) as file:
        shown = [pixels(frame) for frame in file.decode(video=0)]
    came_s = live_came_s[: len(shown)]
    firsts = [k for k in range(len(came_s)) if not k or came_s[k] != came_s[k - 1]]  # of fragments
    early = [(k, came_s[k] - k / FPS) for k in firsts]
    zero_s = [min(s for k, s in early if abs(k - at) < NEAR_FRAMES) for at in range(len(came_s))]
    places: dict[str, list[int]] = {}
    for k, picture in enumerate(shown):
        places.setdefault(picture, []).append(k)
    late = []
    for here_s, picture in zip(got.came_s, got.pictures, strict=True):
        waits = [here_s - zero_s[k] - k / FPS for k in places.get(picture, [])]
        late += [min(waits, key=abs)] if waits and min(map(abs, waits)) < 2 else []
    return np.array(late)


def sound_after_picture_s(got: Received, file: bytes) -> float:
    """How much later than its frames the sound is played, against the same words in the session's file.

    Uses the part with the most sound in which the timeline was not delayed.
    """
    with av.open(io.BytesIO(file)) as container:
        shown = {pixels(frame): k for k, frame in enumerate(container.decode(video=0))}
    with av.open(io.BytesIO(file)) as container:
        said = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    stretches: dict[int, list[int]] = {}  # frames of the file, by the RTP time at which the file would have started
    for rtp, picture in zip(got.picture_rtp, got.pictures, strict=True):
        if picture in shown:
            stretches.setdefault(rtp - shown[picture] * CLOCKS["video"] // FPS, []).append(shown[picture])
    parts_of = {zero: _part(said, ks[0], ks[-1] + 1) for zero, ks in stretches.items()}
    zero = max(parts_of, key=lambda zero: float(np.square(parts_of[zero]).sum()))
    said = parts_of[zero]
    parts = [part[:: OPUS_HZ // RATE].astype(np.float32) / 2**15 for part in got.sound]
    places = [(rtp - got.sound_rtp[0]) * RATE // OPUS_HZ for rtp in got.sound_rtp]  # packets may be lost
    heard = np.zeros(max(p + len(part) for p, part in zip(places, parts, strict=True)), np.float32)
    for place, part in zip(places, parts, strict=True):
        heard[place : place + len(part)] = part
    begins_s = float(got.ntp_s("audio", got.sound_rtp[0]))
    size = 1 << (len(heard) + len(said)).bit_length()
    match = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size)), size)
    lag = int(np.argmax(match))
    sound_s = begins_s + (lag if lag < size // 2 else lag - size) / RATE
    return float(sound_s - got.ntp_s("video", zero))


def _part(sound: Any, first: int, end: int) -> Any:
    """The sound of some frames, with silence around it."""
    kept = np.zeros_like(sound)
    where = slice(first * RATE // FPS, end * RATE // FPS)
    kept[where] = sound[where]
    return kept
