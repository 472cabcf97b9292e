"""What goes down the line, and what comes out: jobs, segments of speech, chunks of face crops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from configs.schema import StitchConfig
from deployments.common.stage import Stamped
from models.speech.activity import Spans
from models.types import FaceCrops, Speech


@dataclass(frozen=True, slots=True)
class LineSettings:
    """How an utterance is cut up and driven."""

    fps: int = 25
    chunk_frames: int = 8
    first_chunk_frames: int = 4
    window_chunks: int = 3
    tries: int = 4
    chunk_timeout_s: float = 30.0
    av_offset_s: float = 0.0  # how much later than their sound the lips are shown

    @classmethod
    def of(cls, config: StitchConfig, fps: int) -> LineSettings:
        return cls(
            fps,
            config.chunk_frames,
            config.first_chunk_frames,
            config.window_chunks,
            config.tries,
            config.chunk_timeout_s,
            config.av_offset_ms / 1e3,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One utterance: `text` to be spoken, `parts` of a text that is still being written, or `speech` as it is.

    position: the session's. place(first frame, frames) → a segment's own position, where it is shown live: asked when
    the segment's speech is there, since only then can be said when its pictures will be.
    """

    avatar_id: str
    position: int
    session_id: str = ""
    avatar_version: str = ""
    text: str = ""
    parts: AsyncIterator[str] | None = None
    place: Callable[[int, int], int] | None = None
    speech: tuple[Speech, ...] = ()
    voice: str | None = None
    speed: float | None = None
    enhance: bool = False
    strength: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Crops of some frames. `last` ends the utterance.

    speech: with a segment's first chunk, the whole segment: samples padded to whole frames, phonemes where they are
    known, times from `crops.first_frame` on, which is the segment's first frame in the utterance. None with its others.
    following: the next segment and its first frame, where it has come already: nothing waits for it.
    """

    crops: FaceCrops
    speech: Speech | None
    last: bool
    following: tuple[Speech, int] | None = None
    position: int | None = None  # of its first frame on the session's line, where the job places segments
    closes: bool = False  # it ends its segment


@dataclass(slots=True, eq=False)
class Segment:
    """A padded Speech, as the lips hear it, its place in the utterance, and the un-awaited response of its features."""

    speech: Speech
    first_frame: int
    frames: int
    heard: Speech
    active: Spans  # when that sounds, in seconds from its start: as the ear of the whole utterance has it
    position: int = 0  # of its first frame on the session's line
    opens: bool = True  # it does not follow on the segment before it
    features: Any = None
    done: asyncio.Task[float] | None = None  # ends when the features are there: the wall-clock time of that
    following: Segment | None = None  # the next one, once it is here


@dataclass(slots=True, eq=False)
class Entry:
    """A chunk under way: `task` gives its crops, from frame `start` of the segment on."""

    segment: Segment
    start: int
    task: asyncio.Task[Stamped[FaceCrops]]

    def cancel(self) -> None:
        self.task.cancel()
        if self.segment.done is not None:
            self.segment.done.cancel()
        if self.segment.features is not None:
            self.segment.features.cancel()
