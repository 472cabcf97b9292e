"""The server's answers as dataclasses. Fields that a newer server adds are ignored."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def parsed(kind: type[T], answer: dict[str, Any]) -> T:
    """Build the dataclass `kind` from a JSON object, ignoring unknown fields."""
    names = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in answer.items() if key in names})


@dataclass(frozen=True, slots=True)
class Speech:
    """A spoken utterance. stages: per stage its calls, frames, and milliseconds of queue, transfer and compute.

    frames, duration_s: length in the session's video. start_s: where it begins there. interrupted: it was stopped; the
    transcript says where. Speech interrupted before its first frame is not in the video. warnings: parts of the text
    that were not spoken, because the voice cannot read them.
    """

    session_id: str
    avatar_id: str
    video_url: str
    frames: int
    duration_s: float
    ttff_ms: float
    rtf: float
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    start_s: float = 0.0
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Heard:
    """A segment of a transcript, seconds from the start of the recording."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of a recording; `text` is empty without speech."""

    text: str
    language: str = ""
    duration_s: float = 0.0
    segments: list[Heard] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Session:
    """A session. utterances: its transcript. size: bytes of its video."""

    session_id: str
    avatar_id: str = ""
    frames: int = 0
    duration_s: float = 0.0
    size: int = 0
    video_url: str = ""
    utterances: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Interruption:
    """interrupted: number of utterances that were stopped or dropped."""

    session_id: str
    interrupted: int = 0


@dataclass(frozen=True, slots=True)
class Avatar:
    """A prepared avatar. removable: `remove_avatar` can delete it, unlike the built-in ones."""

    avatar_id: str
    version: str
    fps: int
    width: int
    height: int
    frames: int
    removable: bool = False


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of the TTS engine. One that is not `ready` is downloaded at its first use: `fetch_mb`, 10⁶ bytes."""

    name: str
    ready: bool = True
    fetch_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a preparation; `total` is 0 if it is not known."""

    step: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A finished preparation, with the server's report."""

    avatar_id: str
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ChatJob:
    """State of a chat message. `reply` grows until it is `written`; `saying` and `frames` change while it is spoken.

    progress: share of the reply that was heard, or produced if nobody watches, 0 to 1; it never decreases. latency:
    measured so far, also while it is spoken. interrupted: it was stopped, and its status is done. error: why the answer
    failed, also while the part before the error is still spoken. warnings: parts of the reply that were not spoken.
    """

    job_id: str
    session_id: str
    status: Literal["queued", "thinking", "speaking", "done", "failed"] = "queued"
    progress: float = 0.0
    reply: str = ""
    written: bool = False
    saying: str | None = None
    video_url: str | None = None
    start_s: float = 0.0
    interrupted: bool = False
    frames: int = 0
    latency: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.status in ("done", "failed")
