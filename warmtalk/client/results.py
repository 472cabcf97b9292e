"""What the server answers, typed. Fields that a newer server adds are passed over."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def parsed(kind: type[T], answer: dict[str, Any]) -> T:
    """`answer` as a dataclass of results, without what that does not know."""
    names = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in answer.items() if key in names})


@dataclass(frozen=True, slots=True)
class Speech:
    """An utterance that was spoken. `stages`: per stage calls, frames and milliseconds of queue, transfer, compute.

    frames, duration_s: what of it is in the session's video. start_s: where it begins there. interrupted: it was cut,
    and the transcript says where; of what was cut before anybody saw it, nothing is in the video.
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


@dataclass(frozen=True, slots=True)
class Heard:
    """A stretch of a recording, seconds from its start."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in a recording; `text` is empty where nothing is."""

    text: str
    language: str = ""
    duration_s: float = 0.0
    segments: list[Heard] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Session:
    """Facts of a session; `utterances` is its transcript."""

    session_id: str
    avatar_id: str = ""
    frames: int = 0
    duration_s: float = 0.0
    size: int = 0
    video_url: str = ""
    utterances: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Interruption:
    """How many utterances were cut or dropped; the transcript says where."""

    session_id: str
    interrupted: int = 0


@dataclass(frozen=True, slots=True)
class Avatar:
    """A prepared avatar. removable: it was not there from the start, and `remove_avatar` deletes it."""

    avatar_id: str
    version: str
    fps: int
    width: int
    height: int
    frames: int
    removable: bool = False


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of the server's engine; one that is not `ready` is fetched at its first use: `fetch_mb`, 10⁶ bytes."""

    name: str
    ready: bool = True
    fetch_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a preparation has come; `total` is 0 where it is not known."""

    step: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preparation that succeeded, with the server's report."""

    avatar_id: str
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ChatJob:
    """How far a message has come. `reply` grows until it is `written`, `saying` and `frames` while it is speaking.

    progress: how much of the reply was heard, or made where nobody watches, 0 to 1; it never goes back. latency: of
    what is made so far, also while it is speaking. interrupted: it was cut, and is done.
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

    @property
    def finished(self) -> bool:
        return self.status in ("done", "failed")
