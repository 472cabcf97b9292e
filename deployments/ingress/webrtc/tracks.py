"""The WebRTC tracks of one viewer: single pictures and 20 ms of sound, each returned when it is due.

Pictures are sent as they were encoded, one by one at the frame rate. For a viewer without H.264 they are decoded here
and encoded by aiortc. Sound is always encoded again, because browsers require Opus. The messages that live.mp4 carries
in boxes, such as captions, are sent as JSON on a data channel, if the viewer has opened one.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

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
SOUND_SAMPLES = OPUS_HZ // 50  # 20 ms
DELAY_S = 0.08  # from the arrival of a picture to sending it: the jitter that a busy machine adds
PACE_FRAGMENTS = 8  # 1.3 s: the earliest of these fragments sets the clock
MAX_BUFFERED_BYTES = 64 * 2**10  # on a data channel; messages beyond it are dropped
MAX_PICTURES = 64  # queued for a track; then the oldest is dropped
MAX_SOUNDS = 256
START_CODE = b"\0\0\0\1"


class Feed:
    """Puts the fragments of a viewer on one clock that starts at 0. `run` fills the tracks."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        viewer.started = True  # Hubs must not disconnect it as unread: Peers has its own timeout
        self.passthrough = True  # send pictures as they were encoded
        self.channel: Any = None  # the viewer's data channel
        self.spec: MediaSpec = viewer.timeline.spec
        headers, config = codec_headers(self.spec)
        self._headers = headers if headers.startswith(START_CODE) else START_CODE + headers
        self._aac = av.CodecContext.create("aac", "r")
        self._aac.extradata = config
        self._h264: Any = av.CodecContext.create("h264", "r")
        self._h264.thread_count = 1  # each further thread delays the pictures by one
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=OPUS_HZ)
        self._pictures: asyncio.Queue[Any] = asyncio.Queue(MAX_PICTURES)  # (due in seconds, packet)
        self._sounds: asyncio.Queue[Any] = asyncio.Queue(MAX_SOUNDS)  # (due in seconds, frame)
        self._samples = np.zeros(0, np.int16)  # less than SOUND_SAMPLES, for the next frame
        self._sample_count = 0  # in the frames so far
        self._zero_s: float | None = None  # time.monotonic() at 0 of the clock
        self._zeros_s: deque[float] = deque(maxlen=PACE_FRAGMENTS)

    def track(self, kind: str) -> Any:
        """A track for aiortc. It returns each item of `run` when it is due."""
        from aiortc import MediaStreamTrack

        feed = self

        class Track(MediaStreamTrack):  # type: ignore[misc]
            async def recv(self) -> Any:
                return await (feed._next_picture() if kind == "video" else feed._next(feed._sounds))

        Track.kind = kind
        return Track()

    async def run(self) -> None:
        """Queue what the viewer receives from now on, until its stream ends. What came before is out of date."""
        self.viewer.skip_to_edge()
        async with aclosing(self.viewer.fragments()) as fragments:
            async for fragment, begins in fragments:
                video, audio = self.viewer.timeline.schedule(fragment, begins)
                self._set_clock(time.monotonic() - video.start / VIDEO_TIMESCALE)
                self._add_pictures(video, fragment.key)
                self._add_sound(audio)
                for kind, message in self.viewer.take_messages():
                    self._send_message(kind, message)
        if self.viewer.ending is not None:
            self._send_message("ended", {"reason": self.viewer.ending})

    def _send_message(self, kind: str, message: dict[str, Any]) -> None:
        """now_s: the position in the stream that is being sent, on the clock of the message's times."""
        channel = self.channel
        if channel is None or channel.readyState != "open" or channel.bufferedAmount > MAX_BUFFERED_BYTES:
            return
        assert self._zero_s is not None
        now_s = time.monotonic() - self._zero_s - DELAY_S
        channel.send(json.dumps({"type": kind, kind: message, "now_s": round(now_s, 3)}))

    async def _next(self, queue: "asyncio.Queue[Any]") -> Any:
        due_s, item = await queue.get()
        assert self._zero_s is not None
        await asyncio.sleep(max(0.0, self._zero_s + due_s + DELAY_S - time.monotonic()))
        return item

    async def _next_picture(self) -> Any:
        packet = await self._next(self._pictures)
        if self.passthrough:
            return packet
        while True:
            with contextlib.suppress(av.error.InvalidDataError):  # after a dropped picture, until a keyframe
                for frame in await asyncio.to_thread(self._h264.decode, packet):
                    return frame
            packet = await self._next(self._pictures)

    def _set_clock(self, zero_s: float) -> None:
        """Set the zero of the clock to the earliest zero of the latest fragments.

        The first fragments arrive at once, as a buffer that is not needed here, and a host's clock may be changed.
        """
        if self._zero_s is None:
            self._zero_s = zero_s
        self._zeros_s.append(zero_s)
        earliest_s = min(self._zeros_s)
        if earliest_s < self._zero_s or len(self._zeros_s) == PACE_FRAGMENTS:
            self._zero_s = earliest_s

    def _add_pictures(self, video: Run, key: bool) -> None:
        for k, sample in enumerate(video.samples):
            data = annex_b(sample)
            packet = av.Packet(self._headers + data if key and not k else data)
            packet.pts = packet.dts = video.start + k * video.sample_ticks
            packet.time_base = fractions.Fraction(1, VIDEO_TIMESCALE)
            _put(self._pictures, (packet.pts / VIDEO_TIMESCALE, packet))

    def _add_sound(self, audio: Run) -> None:
        for sample in audio.samples:
            for frame in self._aac.decode(av.Packet(sample)):
                frame.pts = None
                for out in self._resampler.resample(frame):
                    self._samples = np.concatenate([self._samples, out.to_ndarray()[0]])
        while len(self._samples) >= SOUND_SAMPLES:
            frame = av.AudioFrame.from_ndarray(self._samples[None, :SOUND_SAMPLES], format="s16", layout="mono")
            frame.sample_rate, frame.pts = OPUS_HZ, self._sample_count
            frame.time_base = fractions.Fraction(1, OPUS_HZ)
            _put(self._sounds, (self._sample_count / OPUS_HZ, frame))
            self._samples, self._sample_count = self._samples[SOUND_SAMPLES:], self._sample_count + SOUND_SAMPLES


def annex_b(sample: bytes) -> bytes:
    """The NAL units of an MP4 sample, each after a start code instead of its length."""
    out, at = b"", 0
    while at < len(sample):
        size = int.from_bytes(sample[at : at + 4], "big")
        out += START_CODE + sample[at + 4 : at + 4 + size]
        at += 4 + size
    return out


def _put(queue: "asyncio.Queue[Any]", item: Any) -> None:
    """Add an item; drop the oldest if the queue is full."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)
