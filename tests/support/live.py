"""A small avatar whose frames can be distinguished, its fragments, and a fake Stitch, for the tests of live streams."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from deployments.common.messages import LiveEvent, LiveResume, LiveStart
from models.avatar.playback import ping_pong
from models.live.timeline import LiveClock, LiveFragment
from models.media.encode import MediaSpec, UtteranceEncoder
from models.types import Fragment

SIDE = 64
SPEC = MediaSpec(SIDE, SIDE, 25, fragment_frames=8, first_fragment_frames=4, crf=8)
RATE = SPEC.sample_rate_hz


def grey(level: int) -> Any:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def levels(count: int) -> Any:
    """Frames `(count, h, w, 3)`, each of one grey level: 20, 24, 28 …"""
    return np.stack([grey(20 + 4 * (k % 58)) for k in range(count)])


AVATAR = levels(40)
PLAYBACK = ping_pong(0, 4000, len(AVATAR))  # the avatar's frame at each position of a live session


def greys_at(position: int, count: int) -> list[int]:
    """The grey levels of a session's idle motion from a position on."""
    return [20 + 4 * int(PLAYBACK[p]) for p in range(position, position + count)]


def fragments(images: Any, samples: Any = None, spec: MediaSpec = SPEC, encoder: Any = None) -> list[Fragment]:
    """The images as one utterance, by default with silence."""
    encoder = encoder or UtteranceEncoder(spec)
    samples = np.zeros(len(images) * RATE // spec.fps, np.float32) if samples is None else samples
    made: list[Fragment] = encoder.push(images, samples, last=True)
    return made


def shown(data: bytes) -> tuple[list[float], list[int]]:
    """The times in seconds and the grey levels of the frames."""
    times, greys = [], []
    with av.open(io.BytesIO(data)) as file:
        for frame in file.decode(video=0):
            times.append(float(frame.time))
            greys.append(round(float(frame.to_ndarray(format="rgb24").mean())))
    return times, greys


def heard(data: bytes) -> tuple[list[float], Any]:
    """The times in seconds of the audio frames, and the samples."""
    times, samples = [], []
    with av.open(io.BytesIO(data)) as file:
        for frame in file.decode(audio=0):
            times.append(float(frame.time))
            samples.append(frame.to_ndarray()[0])
    return times, np.concatenate(samples)


# --- a session to watch


class LiveEvents:
    """A stream of LiveEvents: its start, then what is put into `queue`; exceptions are raised."""

    def __init__(self, start: LiveEvent) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.start, self.started, self.cancelled = start, False, False

    def __aiter__(self) -> LiveEvents:
        return self

    async def __anext__(self) -> LiveEvent:
        if not self.started and self.queue.empty():
            self.started = True
            return self.start
        item: LiveEvent | BaseException = await self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


class FakeStitch:
    """What hubs subscribe to. The next subscriptions raise `errors`."""

    def __init__(self, idle_path: Path, position: int = 0) -> None:
        self.clock = LiveClock.starting(position, time.time(), SPEC.fps)
        self.path = idle_path
        self.subscriptions: list[tuple[str, LiveResume | None]] = []
        self.streams: list[LiveEvents] = []
        self.errors: list[BaseException] = []

    def subscribe(self, session_id: str, resume: LiveResume | None) -> LiveEvents:
        self.subscriptions.append((session_id, resume))
        stream = LiveEvents(LiveEvent(self.clock, LiveStart(session_id, "ann", SPEC, str(self.path))))
        if self.errors:
            stream.queue.put_nowait(self.errors.pop(0))
        self.streams.append(stream)
        return stream

    def send(self, fragment: LiveFragment) -> None:
        self.put(LiveEvent(self.clock, piece=fragment))

    def put(self, item: LiveEvent | BaseException) -> None:
        self.streams[-1].queue.put_nowait(item)


async def watch(viewer: Any, seconds: float) -> tuple[bytes, list[float]]:
    """What a viewer receives in this time, and when each part arrived."""
    data, times_s = b"", []

    async def read() -> None:
        nonlocal data
        async for part in viewer:
            data += part
            times_s.append(time.time())

    reading = asyncio.create_task(read())
    await asyncio.sleep(seconds)
    reading.cancel()
    return data, times_s


async def read_all(viewer: Any) -> bytes:
    """What a viewer receives until its stream ends."""
    return b"".join([part async for part in viewer])
