"""Viewers of live sessions for the benchmarks. They record what they receive, and when."""

from __future__ import annotations

import asyncio
import io
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import av
import httpx
import numpy as np

from benchmarks.common import complete_boxes, decode_audio
from models.media import mp4 as boxes
from models.tts.streaming import LEAD_S

LOUD = 0.02  # samples with a larger absolute value are sound
APART_S = 1.2  # a longer silence separates two utterances
FPS = 25


@dataclass
class Recording:
    """The data that a viewer received, and when each frame arrived."""

    began_s: float = 0.0
    data: bytes = b""
    came_s: list[float] = field(default_factory=list)  # wall clock, per video frame

    def take(self, part: bytes, data: bool = True) -> None:
        """Add complete boxes. data: keep their bytes, and not only the times."""
        self.data += part if data else b""
        self.came_s += [time.time()] * frames_in(part)

    def frames(self) -> Any:
        """The upper parts of the frames, grey `(n, h, w)`: head and background, which speech does not move."""
        with av.open(io.BytesIO(self.data)) as file:
            return np.stack([upper(frame.to_ndarray(format="gray")) for frame in file.decode(video=0)])

    def times(self) -> Any:
        """The presentation time of each frame, s."""
        with av.open(io.BytesIO(self.data)) as file:
            return np.array([frame.time for frame in file.decode(video=0)])

    def loud_s(self) -> list[tuple[float, float]]:
        """(first, last) time of each utterance's sound, s of stream time."""
        sound, rate = decode_audio(self.data)
        loud = np.flatnonzero(np.abs(sound) > LOUD) / rate
        if not len(loud):
            return []
        breaks = np.flatnonzero(np.diff(loud) > APART_S)
        return list(zip([loud[0], *loud[breaks + 1]], [*loud[breaks], loud[-1]], strict=True))

    def first_frame_s(self, sound_s: float) -> float:
        """Wall clock at which the first frame of an utterance arrived. sound_s: stream time of its first sound."""
        return self.came_s[max(0, round((sound_s - LEAD_S) * FPS))]


def upper(grey: Any) -> Any:
    """The upper third of grey frames, at a third of the resolution."""
    return grey[: grey.shape[0] * 35 // 100 : 3, ::3].astype(np.int16)


def frames_in(data: bytes) -> int:
    """The number of video frames in complete fragments."""
    count = 0
    for kind, start, end in boxes.children(data, 0, len(data)):
        if kind == b"moof":
            for traf in ((s, e) for k, s, e in boxes.children(data, start, end) if k == b"traf"):
                at = {k: s for k, s, _ in boxes.children(data, *traf)}
                (track,) = struct.unpack_from(">I", data, at[b"tfhd"] + 4)
                (samples,) = struct.unpack_from(">I", data, at[b"trun"] + 4)
                count += samples if track == boxes.VIDEO_TRACK else 0
    return count


def lateness_s(came_s: list[float], fps: int = FPS) -> Any:
    """How late each frame came for a player that starts with the first and never waits, s `(n,)`; negative: early."""
    return np.array(came_s) - came_s[0] - np.arange(len(came_s)) / fps


def behind_s(came_s: list[float], fps: int = FPS) -> Any:
    """How long after its arrival a player shows each frame, s `(n,)`. The player starts at once and waits on underruns.

    This is the player's distance from the live edge.
    """
    due_s = came_s[0] + np.arange(len(came_s)) / fps
    stalled_s = np.maximum.accumulate(np.maximum(0.0, np.array(came_s) - due_s))
    return due_s + stalled_s - np.array(came_s)


class Viewer:
    """Receives a session's live.mp4 until it is stopped. keep: record when frames came, and with `data` the data."""

    def __init__(self, client: httpx.AsyncClient, session_id: str, keep: bool = True, data: bool = True) -> None:
        self.recording, self._keep, self._data = Recording(), keep, data
        self._client, self._url = client, f"/sessions/{session_id}/live.mp4"
        self.started = asyncio.Event()
        self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        rest = b""
        async with self._client.stream("GET", self._url) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_raw():
                self.started.set()
                if self._keep:
                    rest = self._record(rest + part)

    def _record(self, data: bytes) -> bytes:
        """Record the complete boxes of `data`; return the rest."""
        end = max((end for _, end in complete_boxes(data)), default=0)
        if end:
            self.recording.take(data[:end], self._data)
        return data[end:]

    @property
    def stream_s(self) -> float:
        """The amount received, s of stream time."""
        return len(self.recording.came_s) / FPS

    async def stop(self) -> Recording:
        """Disconnect and return the recording."""
        self.task.cancel()
        await asyncio.wait({self.task})
        return self.recording
