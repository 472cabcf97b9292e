"""Messages between the ingress, Chat and Stitch. Sent by Ray, so they are plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from deployments.common.requests import TRACE_PARENT
from models.errors import WarmTalkError
from models.live.timeline import LiveClock, LiveFragment
from models.media.encode import MediaSpec

DEFAULT_SESSION = "default"

# Why a live stream ends. `closed`, `removed`, `expired` and `reset` happened to the session (`expired`: it was removed
# because nothing was spoken in it for long). `replaced`: it shows another avatar now. `stopped`: the server stops.
# `slow`: the viewer does not read its stream.
Ending = Literal["closed", "removed", "expired", "reset", "replaced", "stopped", "slow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechOptions:
    """How an utterance looks and sounds. None: the value in the config of the stage."""

    avatar_id: str | None = None
    enhance: bool | None = None  # face restoration on or off
    strength: float | None = None  # of face restoration, 0 to 1
    voice: str | None = None
    speed: float | None = None  # 1 is the normal speed of the voice

    def speech_options(self) -> dict[str, Any]:
        """These options alone, as keyword arguments for another SpeechOptions."""
        return {option.name: getattr(self, option.name) for option in fields(SpeechOptions)}


@dataclass(frozen=True, slots=True)
class SpeakRequest(SpeechOptions):
    """One utterance for Stitch: `text`, or `audio_path`, or `text_stream_key`.

    audio_path: of a sound file in the folder of uploads (paths.UPLOADS). The ingress deletes it after the answer.
    text_stream_key: the key of a text stream, a text that is still being written (deployments/common/text_stream.py).
    """

    session_id: str = DEFAULT_SESSION
    text: str = ""
    audio_path: str = ""
    deliver: bool = True  # False: return only the summary, without the fragments
    sent_s: float = field(default=0.0, compare=False)  # when the caller sent it first, by its wall clock
    moves: int = 0  # how often it was sent again because its session moved to another replica
    text_stream_key: str = ""
    progress: bool = False  # also return progress events while the utterance is made
    calls: bool = False  # the summary lists every call of every stage, for a profile
    trace_parent: str = field(default_factory=TRACE_PARENT.get, compare=False)  # of its spans


@dataclass(frozen=True, slots=True)
class SpeakEvent:
    """One item of Stitch's answer: video bytes, the first with the init segment; progress; or the summary.

    error: why a text that is still being written ended early; what arrived before it is spoken (text_stream.py).
    making: the fields of websocket.protocol.Making, and `spoken` (the sentences whose sound has begun) and `watched`.
    """

    data: bytes = b""
    frames: int = 0
    making: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    error: WarmTalkError | None = None


@dataclass(frozen=True, slots=True)
class SoundPart:
    """A part of a sound file that TTS makes. warnings: what was left out of its text, as far as known by now."""

    data: bytes
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest(SpeechOptions):
    """One message for Chat, whose answer is spoken in the session."""

    message: str
    session_id: str = DEFAULT_SESSION
    trace_parent: str = field(default_factory=TRACE_PARENT.get, compare=False)


@dataclass(frozen=True, slots=True)
class LiveStart:
    """What an ingress needs to show a session: the encoding, and the file of the avatar's idle motion."""

    session_id: str
    avatar_id: str
    spec: MediaSpec
    idle_path: str
    host: str = ""  # the host whose monotonic clock drives the session
    clock_offset_s: float = 0.0  # added to that clock to get the session's time (clocks.py)
    avatar_version: str = ""

    @property
    def picture(self) -> tuple[str, str, MediaSpec]:
        """What speech must match. An avatar that was prepared again may have other frames in another order."""
        return self.avatar_id, self.avatar_version, self.spec


@dataclass(frozen=True, slots=True)
class LiveResume:
    """Where a live stream goes on after its replica was lost or has handed the session over.

    `position` was due in `due_in_s` seconds when the ingress sent this, at `monotonic_s` of its host and `wall_s`.
    moves: how often the subscription was refused because the session moves.
    """

    position: int
    due_in_s: float
    host: str
    monotonic_s: float
    wall_s: float
    moves: int = 0


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """The current clock of a session, and one news item: its start, a live fragment, or none (a heartbeat).

    moved: another replica owns the session now; subscribe again. The last event.
    expect: speech will begin at this position, so wait for it if it is late; -1: no speech is expected any more.
    making: progress of the utterance that is being made. ended: why the stream ends with this event.
    """

    clock: LiveClock
    start: LiveStart | None = None
    piece: LiveFragment | None = None
    expect: int | None = None
    making: dict[str, Any] | None = None
    ended: Ending | None = None
    moved: bool = False
