"""Playback over WebRTC, WHEP-style: an offer in, an answer out, then pictures and sound below 300 ms behind.

Belongs to the ingress; aiortc is in the extra `[webrtc]`. Pictures pass as they were coded, one by one at the frame
rate; only sound is coded anew, since browsers want Opus. Knows nothing of HTTP.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
import contextlib
import fractions
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import av
import numpy as np

from deployments.hub import Viewer
from models.errors import BusyError, ConfigError, InputError, NotFoundError
from models.stitch.boxes import Run
from models.stitch.encode import VIDEO_TIMESCALE, MediaSpec, codec_headers

OPUS_HZ = 48_000
AUDIO_FRAME = OPUS_HZ // 50  # samples: 20 ms
AHEAD_S = 0.08  # pictures are sent so long after they came: what a busy machine may be late by
MAX_PEERS = 100  # of one ingress replica
LOST_STATES = ("failed", "closed", "disconnected")
START_CODE = b"\0\0\0\1"


class Peers:
    """The WebRTC connections of an ingress replica."""

    def __init__(self) -> None:
        self._peers: dict[str, tuple[Any, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._peers)

    async def offer(self, sdp: str, view: Callable[[], Awaitable[Viewer]]) -> tuple[str, str]:
        """(id, SDP answer) for a client's offer to receive. Raises InputError, ConfigError, and what `view` raises."""
        try:
            from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription
        except ImportError as error:
            remedy = "pip install 'warmtalk[webrtc]', or use live.mp4."
            raise ConfigError("WebRTC is not installed here.", remedy) from error
        if len(self._peers) >= MAX_PEERS:
            raise BusyError("As many WebRTC viewers watch as this server allows.", "Use live.mp4.")
        if "video" not in (kinds := re.findall(r"^m=(audio|video) ", sdp, re.MULTILINE)):
            raise InputError("The body is no SDP offer with video.", "Offer to receive H.264.")
        connection = RTCPeerConnection()
        viewer = None
        try:
            viewer = await view()
            feed = Feed(viewer)
            for kind in dict.fromkeys(kinds):  # before the offer is read: what is preferred is chosen from it
                transceiver = connection.addTransceiver(feed.track(kind), direction="sendonly")
                if kind == "video":
                    codecs = RTCRtpSender.getCapabilities("video").codecs
                    transceiver.setCodecPreferences([c for c in codecs if c.mimeType in ("video/H264", "video/rtx")])
            try:
                await connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            except Exception as error:
                why = str(error).rstrip(".") or "it is not SDP"
                raise InputError(f"The offer cannot be answered: {why}.", "Offer to receive H.264.") from error
            answer = await connection.createAnswer()
            if "H264" not in answer.sdp:
                raise InputError("The offer has no H.264 video.", "Offer to receive H.264, or use live.mp4.")
            await connection.setLocalDescription(answer)
        except BaseException:
            if viewer is not None:
                viewer.close()
            await connection.close()
            raise
        peer_id = uuid.uuid4().hex
        self._peers[peer_id] = (connection, asyncio.create_task(self._serve(peer_id, connection, feed)))
        return peer_id, str(connection.localDescription.sdp)

    async def end(self, peer_id: str) -> None:
        """Raises NotFoundError."""
        if peer_id not in self._peers:
            raise NotFoundError("There is no such connection.", "It may have ended by itself.")
        _, task = self._peers[peer_id]
        task.cancel()
        await asyncio.wait({task})

    async def stop(self) -> None:
        for peer_id in list(self._peers):
            with contextlib.suppress(NotFoundError):
                await self.end(peer_id)

    async def _serve(self, peer_id: str, connection: Any, feed: "Feed") -> None:
        """Feed the connection until it is lost, or the session ends."""
        lost = asyncio.Event()

        def changed() -> None:
            if connection.connectionState in LOST_STATES:
                lost.set()

        connection.on("connectionstatechange", changed)
        feeding, losing = asyncio.create_task(feed.run()), asyncio.create_task(lost.wait())
        try:
            await asyncio.wait({feeding, losing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (feeding, losing):
                task.cancel()
            feed.viewer.close()
            self._peers.pop(peer_id, None)
            await connection.close()


class Feed:
    """One viewer's pieces as single pictures and 20 ms of sound, on one clock that starts at 0."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.spec: MediaSpec = viewer.timeline.spec
        headers, config = codec_headers(self.spec)
        self._headers = headers if headers.startswith(START_CODE) else START_CODE + headers
        self._decoder = av.CodecContext.create("aac", "r")
        self._decoder.extradata = config
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=OPUS_HZ)
        self._pictures: asyncio.Queue[Any] = asyncio.Queue(64)
        self._sounds: asyncio.Queue[Any] = asyncio.Queue(256)
        self._held = np.zeros(0, np.int16)
        self._sampled = 0
        self._zero_s = 0.0

    def track(self, kind: str) -> Any:
        """A track for aiortc that gives what `run` brings, when it is due."""
        from aiortc import MediaStreamTrack

        queue = self._pictures if kind == "video" else self._sounds
        feed = self

        class Track(MediaStreamTrack):  # type: ignore[misc]
            async def recv(self) -> Any:
                due_s, item = await queue.get()
                await asyncio.sleep(max(0.0, feed._zero_s + due_s + AHEAD_S - time.monotonic()))
                return item

        Track.kind = kind
        return Track()

    async def run(self) -> None:
        async with aclosing(self.viewer.taken()) as taken:
            async for piece, begins in taken:
                if not self._zero_s:
                    self._zero_s = time.monotonic()
                video, audio = self.viewer.timeline.lay(piece, begins)
                self._keep_up(video)
                self._show(video, piece.key)
                self._sound(audio)

    def _keep_up(self, video: Run) -> None:
        """The first pieces come at once, as a buffer that is not wanted here: their time has passed already."""
        behind_s = time.monotonic() - self._zero_s - video.start / VIDEO_TIMESCALE
        if behind_s < -AHEAD_S:
            self._zero_s += behind_s

    def _show(self, video: Run, key: bool) -> None:
        for k, sample in enumerate(video.samples):
            data = annex_b(sample)
            packet = av.Packet(self._headers + data if key and not k else data)
            packet.pts = packet.dts = video.start + k * video.sample_ticks
            packet.time_base = fractions.Fraction(1, VIDEO_TIMESCALE)
            _put(self._pictures, (packet.pts / VIDEO_TIMESCALE, packet))

    def _sound(self, audio: Run) -> None:
        for sample in audio.samples:
            for frame in self._decoder.decode(av.Packet(sample)):
                frame.pts = None
                for out in self._resampler.resample(frame):
                    self._held = np.concatenate([self._held, out.to_ndarray()[0]])
        while len(self._held) >= AUDIO_FRAME:
            frame = av.AudioFrame.from_ndarray(self._held[None, :AUDIO_FRAME], format="s16", layout="mono")
            frame.sample_rate, frame.pts = OPUS_HZ, self._sampled
            frame.time_base = fractions.Fraction(1, OPUS_HZ)
            _put(self._sounds, (self._sampled / OPUS_HZ, frame))
            self._held, self._sampled = self._held[AUDIO_FRAME:], self._sampled + AUDIO_FRAME


def annex_b(sample: bytes) -> bytes:
    """An MP4 sample's NAL units, each behind a start code instead of its length."""
    out, at = b"", 0
    while at < len(sample):
        size = int.from_bytes(sample[at : at + 4], "big")
        out += START_CODE + sample[at + 4 : at + 4 + size]
        at += 4 + size
    return out


def _put(queue: "asyncio.Queue[Any]", item: Any) -> None:
    """Add an item; where nobody takes any, the oldest goes."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)
