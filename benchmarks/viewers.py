"""Viewers of live sessions for the benchmarks: what they received, and when."""

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

from models.media import mp4 as boxes
from models.tts.streaming import LEAD_S

LOUD = 0.02
APART_S = 1.2  # of silence between two utterances here
FPS = 25


@dataclass
class Recording:
    """What a viewer received: bytes, and when each of its frames came."""

    began_s: float = 0.0
    data: bytes = b""
    came_s: list[float] = field(default_factory=list)  # of each video frame, wall clock

    def take(self, part: bytes) -> None:
        self.data += part
        self.came_s += [time.time()] * frames_in(part)

    def frames(self) -> Any:
        """Upper halves of the frames, `(n, h, w)` grey: head and background, which speech leaves alone."""
        with av.open(io.BytesIO(self.data)) as file:
            return np.stack([upper(frame.to_ndarray(format="gray")) for frame in file.decode(video=0)])

    def times(self) -> Any:
        with av.open(io.BytesIO(self.data)) as file:
            return np.array([frame.time for frame in file.decode(video=0)])

    def loud_s(self) -> list[tuple[float, float]]:
        """Stretches with sound, apart by APART_S at least: first and last loud moment, stream time."""
        with av.open(io.BytesIO(self.data)) as file:
            rate = file.streams.audio[0].rate
            sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        loud = np.flatnonzero(np.abs(sound) > LOUD) / rate
        if not len(loud):
            return []
        breaks = np.flatnonzero(np.diff(loud) > APART_S)
        return list(zip([loud[0], *loud[breaks + 1]], [*loud[breaks], loud[-1]], strict=True))

    def first_frame_s(self, sound_s: float) -> float:
        """Wall clock at which the frame came that begins LEAD_S before a sound: where its utterance begins."""
        return self.came_s[max(0, round((sound_s - LEAD_S) * FPS))]


def upper(grey: Any) -> Any:
    return grey[: grey.shape[0] * 35 // 100 : 3, ::3].astype(np.int16)


def frames_in(data: bytes) -> int:
    """Video frames of the whole fragments in `data`."""
    count = 0
    for kind, start, end in boxes.children(data, 0, len(data)):
        if kind == b"moof":
            for traf in ((s, e) for k, s, e in boxes.children(data, start, end) if k == b"traf"):
                at = {k: s for k, s, _ in boxes.children(data, *traf)}
                (track,) = struct.unpack_from(">I", data, at[b"tfhd"] + 4)
                (samples,) = struct.unpack_from(">I", data, at[b"trun"] + 4)
                count += samples if track == boxes.VIDEO_TRACK else 0
    return count


def behind_s(came_s: list[float], fps: int = FPS) -> Any:
    """How long after each frame came a player shows it, s `(n,)`: one that begins at the first, and waits when it must.

    That is how far it stands behind the live edge.
    """
    due_s = came_s[0] + np.arange(len(came_s)) / fps
    stalled_s = np.maximum.accumulate(np.maximum(0.0, np.array(came_s) - due_s))
    return due_s + stalled_s - np.array(came_s)


class Viewer:
    """Watches a session live until it is stopped."""

    def __init__(self, client: httpx.AsyncClient, session_id: str, keep: bool = True) -> None:
        self.recording, self._keep = Recording(), keep
        self._client, self._url = client, f"/sessions/{session_id}/live.mp4"
        self.started = asyncio.Event()
        self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        held = b""
        async with self._client.stream("GET", self._url) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_raw():
                self.started.set()
                if self._keep:
                    held = self._whole(held + part)

    def _whole(self, data: bytes) -> bytes:
        """Note the whole boxes; a network may cut a fragment in two."""
        end = 0
        while end + 8 <= len(data):
            size = int.from_bytes(data[end : end + 4], "big")
            if end + size > len(data):
                break
            end += size
        if end:
            self.recording.take(data[:end])
        return data[end:]

    @property
    def stream_s(self) -> float:
        """How much it has received, s of stream time."""
        return len(self.recording.came_s) / FPS

    async def stop(self) -> Recording:
        self.task.cancel()
        await asyncio.wait({self.task})
        return self.recording
