"""What goes into the pipeline and comes out of it: requests, segments of speech, chunks of face crops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from configs.schema import StitchConfig
from deployments.common.errors import cancel_call
from deployments.common.stage import Stamped
from deployments.stitch.enhance_fade import EnhanceFade
from models.speech.activity import Spans
from models.types import FaceCrops, Speech


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How the pipeline cuts an utterance into chunks and calls the stages."""

    fps: int = 25
    chunk_frames: int = 8
    first_chunk_frames: int = 4
    window_chunks: int = 3  # chunks in flight at a time
    tries: int = 4  # attempts per call, the first one included
    chunk_timeout_s: float = 20.0  # without an answer
    speech_timeout_s: float = 30.0  # without a sentence
    av_offset_s: float = 0.0  # the lips are shown this much later than the sound

    @classmethod
    def from_config(cls, config: StitchConfig, fps: int) -> PipelineSettings:
        return cls(
            fps,
            config.chunk_frames,
            config.first_chunk_frames,
            config.window_chunks,
            config.tries,
            config.chunk_timeout_s,
            config.speech_timeout_s,
            config.av_offset_ms / 1e3,
        )


@dataclass(frozen=True, slots=True)
class PipelineRequest:
    """One utterance: `text` to speak, `parts` of a text that is still being written, or recorded `speech`.

    place(segment) → the position of a segment on the session's timeline. It is called once per segment, in order, when
    the segment's speech has arrived. slack_s: see Schedule. fade: of the enhancement, where viewers wait for it.
    """

    avatar_id: str
    place: Callable[[SpeechSegment], int]
    session_id: str = ""
    avatar_version: str = ""
    text: str = ""
    parts: AsyncIterator[str] | None = None
    speech: Iterable[Speech] = ()  # read on a thread, one segment when it is needed
    voice: str | None = None
    speed: float | None = None
    enhance: bool = False
    strength: float | None = None
    slack_s: Callable[[int], float] | None = None
    fade: EnhanceFade | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Face crops of consecutive frames of an utterance. `crops.first_frame` counts from the utterance's first frame.

    speech: in a segment's first chunk the speech of the whole segment, padded to whole frames, with phonemes where
    they are known, and times from `crops.first_frame` on. None in its other chunks. active: when it sounds, if known.
    following: the next segment, if its speech has arrived; the pipeline does not wait for it.
    """

    crops: FaceCrops
    speech: Speech | None
    last: bool  # ends the utterance
    position: int  # of its first frame on the session's timeline
    following: SpeechSegment | None = None
    ends_segment: bool = False
    active: Spans | None = None


@dataclass(slots=True, eq=False)
class SpeechSegment:
    """The speech of one segment, padded to whole frames, and its place in the utterance."""

    speech: Speech
    first_frame: int  # in the utterance
    frames: int
    lip_speech: Speech  # the speech shifted by av_offset_s, from which the features are made
    active: Spans  # when lip_speech sounds, seconds from its start; detected over the whole utterance
    position: int = 0  # of its first frame on the session's timeline
    key: str = ""  # under which AudioFeatures keeps the features after the call for the first chunk
    features: Any = None  # the un-awaited response of AudioFeatures
    features_done: asyncio.Task[float] | None = None  # returns the wall-clock time at which the features were ready
    following: SpeechSegment | None = None  # the next one, once it has arrived

    @property
    def speech_active(self) -> Spans | None:
        """When `speech` sounds, if that is known: it is `lip_speech`."""
        return self.active if self.lip_speech is self.speech else None


@dataclass(slots=True, eq=False)
class PendingChunk:
    """A chunk in flight: `task` returns its crops, from frame `start` of the segment on."""

    segment: SpeechSegment
    start: int
    task: asyncio.Task[Stamped[FaceCrops]]

    def cancel(self) -> None:
        self.task.cancel()
        if self.segment.features_done is not None:
            self.segment.features_done.cancel()
        if self.segment.features is not None:
            cancel_call(self.segment.features)
