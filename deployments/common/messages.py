"""What the ingress and Stitch say to each other. Knows no model and no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from models.live.timeline import LiveClock, LiveFragment
from models.media.encode import MediaSpec

DEFAULT_SESSION = "default"

# Why a live stream ends: the session was closed, deleted, removed since nothing was said in it for long, or reset; it
# shows another avatar now; the server stops; the viewer does not read.
Ending = Literal["closed", "removed", "expired", "reset", "replaced", "stopped", "slow"]


@dataclass(frozen=True, slots=True)
class SpeakRequest:
    """What one call of /speak asks for: `text`, or `audio` as the bytes of a sound file. None means the config's.

    text_stream_key: in their place, the key of a text that is still being written (deployments/common/text_stream.py).
    """

    session_id: str = DEFAULT_SESSION
    text: str = ""
    audio: bytes = b""
    avatar_id: str | None = None
    enhance: bool | None = None
    strength: float | None = None
    voice: str | None = None
    speed: float | None = None
    deliver: bool = True  # False: only the summary is wanted, not the fragments
    text_stream_key: str = ""
    progress: bool = False  # tell how far it is while it is made
    calls: bool = False  # the summary lists every call of every stage, for a profile


@dataclass(frozen=True, slots=True)
class SpeakEvent:
    """One item of the answer: bytes of video to deliver, how far it is, or the summary that ends it.

    making: as messages.Making; and `spoken`: the sentences that have begun to be heard, and whether it is `watched`.
    """

    data: bytes = b""
    frames: int = 0
    making: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What one call of /chat asks for: an answer to `message`, spoken into the session. None means the config's."""

    message: str
    session_id: str = DEFAULT_SESSION
    avatar_id: str | None = None
    enhance: bool | None = None
    voice: str | None = None
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class LiveStart:
    """What an ingress must know to show a session: how it is coded, and where its avatar's idle motion lies."""

    session_id: str
    avatar_id: str
    spec: MediaSpec
    idle_path: str
    host: str = ""  # whose monotonic clock the session's goes by
    clock_offset_s: float = 0.0  # and what is added to it (clocks.py)
    avatar_version: str = ""

    @property
    def picture(self) -> tuple[str, str, MediaSpec]:
        """What speech must fit: an avatar that was prepared anew may have other frames in another order."""
        return self.avatar_id, self.avatar_version, self.spec


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """The session's clock as it is now, and what is new: its start, a piece, or nothing (a sign of life).

    expect: speech is going to begin at this position, and is to be waited for should it be late; -1: it is not.
    making: how far what is made has come (summary.py). ended: why the stream ends here.
    """

    clock: LiveClock
    start: LiveStart | None = None
    piece: LiveFragment | None = None
    expect: int | None = None
    making: dict[str, Any] | None = None
    ended: Ending | None = None
