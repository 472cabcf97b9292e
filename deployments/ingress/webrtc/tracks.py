"""One viewer's pieces for WebRTC: single pictures and 20 ms of sound, each given when it is due. Knows no connection.

Pictures pass as they were coded, one by one at the frame rate; where a viewer knows no H.264 they are decoded here, and
aiortc codes them anew. Sound is always coded anew, since browsers want Opus. What live.mp4 tells in boxes, captions
among it, is told as JSON on a data channel, where the viewer has opened one.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
import contextlib
import fractions
import json
import time
from collections import deque
from contextlib import aclosing
from typing import Any

import av
import numpy as np

from deployments.ingress.live.hub import Viewer
from models.media.encode import VIDEO_TIMESCALE, MediaSpec, codec_headers
from models.media.mp4 import Run

OPUS_HZ = 48_000
AUDIO_FRAME = OPUS_HZ // 50  # samples: 20 ms
AHEAD_S = 0.08  # pictures are sent so long after they came: what a busy machine may be late by
PACED_PIECES = 8  # the earliest of so many, 1.3 s, sets the clock
UNREAD_BYTES = 64 * 2**10  # on a data channel: what comes then is not told
START_CODE = b"\0\0\0\1"


class Feed:
    """One viewer's pieces on one clock that starts at 0. `run` it; take from the tracks. passing: pictures as coded."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        viewer.begun = True  # whether it is ever taken from is for its connection to see, which has a limit of its own
        self.passing = True
        self.channel: Any = None  # a data channel, where the viewer wants to be told captions
        self.spec: MediaSpec = viewer.timeline.spec
        headers, config = codec_headers(self.spec)
        self._headers = headers if headers.startswith(START_CODE) else START_CODE + headers
        self._aac = av.CodecContext.create("aac", "r")
        self._aac.extradata = config
        self._h264: Any = av.CodecContext.create("h264", "r")
        self._h264.thread_count = 1  # each further thread would hold a picture back
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=OPUS_HZ)
        self._pictures: asyncio.Queue[Any] = asyncio.Queue(64)
        self._sounds: asyncio.Queue[Any] = asyncio.Queue(256)
        self._held = np.zeros(0, np.int16)
        self._sampled = 0
        self._zero_s: float | None = None
        self._late_s: deque[float] = deque(maxlen=PACED_PIECES)

    def track(self, kind: str) -> Any:
        """A track for aiortc that gives what `run` brings, when it is due."""
        from aiortc import MediaStreamTrack

        feed = self

        class Track(MediaStreamTrack):  # type: ignore[misc]
            async def recv(self) -> Any:
                return await (feed._picture() if kind == "video" else feed._due(feed._sounds))

        Track.kind = kind
        return Track()

    async def run(self) -> None:
        """Lay out what the viewer gets from now on, until it gets no more. What came while it connected is old."""
        self.viewer.to_edge()
        async with aclosing(self.viewer.taken()) as taken:
            async for piece, begins in taken:
                video, audio = self.viewer.timeline.schedule(piece, begins)
                self._keep_pace(time.monotonic() - video.start / VIDEO_TIMESCALE)
                self._show(video, piece.key)
                self._sound(audio)
                for kind, message in self.viewer.news():
                    self._tell(kind, message)
        if self.viewer.why is not None:
            self._tell("ended", {"reason": self.viewer.why})

    def _tell(self, kind: str, message: dict[str, Any]) -> None:
        """now_s: what of the stream is being sent, by the clock of the message's times."""
        if self.channel is None or self.channel.readyState != "open" or self.channel.bufferedAmount > UNREAD_BYTES:
            return
        assert self._zero_s is not None
        now_s = time.monotonic() - self._zero_s - AHEAD_S
        self.channel.send(json.dumps({"type": kind, kind: message, "now_s": round(now_s, 3)}))

    async def _due(self, queue: "asyncio.Queue[Any]") -> Any:
        due_s, item = await queue.get()
        assert self._zero_s is not None
        await asyncio.sleep(max(0.0, self._zero_s + due_s + AHEAD_S - time.monotonic()))
        return item

    async def _picture(self) -> Any:
        packet = await self._due(self._pictures)
        if self.passing:
            return packet
        while True:
            with contextlib.suppress(av.error.InvalidDataError):  # after a picture was left out, until a key frame
                for frame in await asyncio.to_thread(self._h264.decode, packet):
                    return frame
            packet = await self._due(self._pictures)

    def _keep_pace(self, zero_s: float) -> None:
        """The clock's zero is the earliest that the latest pieces allow.

        The first pieces come at once, as a buffer that is not wanted here, and a host's clock may be set anew.
        """
        if self._zero_s is None:
            self._zero_s = zero_s
        self._late_s.append(zero_s)
        earliest_s = min(self._late_s)
        if earliest_s < self._zero_s or len(self._late_s) == PACED_PIECES:
            self._zero_s = earliest_s

    def _show(self, video: Run, key: bool) -> None:
        for k, sample in enumerate(video.samples):
            data = annex_b(sample)
            packet = av.Packet(self._headers + data if key and not k else data)
            packet.pts = packet.dts = video.start + k * video.sample_ticks
            packet.time_base = fractions.Fraction(1, VIDEO_TIMESCALE)
            _put(self._pictures, (packet.pts / VIDEO_TIMESCALE, packet))

    def _sound(self, audio: Run) -> None:
        for sample in audio.samples:
            for frame in self._aac.decode(av.Packet(sample)):
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
