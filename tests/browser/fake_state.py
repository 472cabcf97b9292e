"""What the server of canned media remembers, and what a test may look at and turn."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse

WORD_S = 0.32
STAGES = {"TTS": 92, "AudioFeatures": 140, "LipSync": 1320, "Enhance": 640, "Stitch": 410}  # ms of a sentence


@dataclass
class FakeSession:
    """`until_s`: the monotonic time at which its speech ends."""

    began_s: float = 0.0
    until_s: float = 0.0
    caption: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    interrupts: int = 0

    @property
    def speaks(self) -> bool:
        return self.began_s <= time.monotonic() < self.until_s

    def say(self, text: str) -> float:
        """Begin to speak, behind what is being said; how long it takes, seconds."""
        length_s = max(1.0, WORD_S * len(text.split()))
        self.began_s = max(time.monotonic(), self.until_s)
        self.until_s = self.began_s + length_s
        self.caption = text
        return length_s


@dataclass
class State:
    """What a test may look at and turn: `reply` answers /chat, `fail` is the error of each call that it names."""

    sessions: dict[str, FakeSession] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    reply: str = "Hello, nice to meet you. I am the face of a test, and I say what it wants to hear."
    think_s: float = 0.3
    fail: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    avatars: list[str] = field(default_factory=list)  # beside the presenter, which ships
    uploads: list[tuple[str, bytes]] = field(default_factory=list)
    viewers: int = 0
    recognition: bool = False  # whether it understands speech, and
    heard: str = "What time is it?"  # what of any recording
    webrtc: Any = False  # whether there is WebRTC; "lost": it is offered, and does not come through
    ended: list[str] = field(default_factory=list)  # WebRTC connections that the page has ended
    down: bool = False  # every live stream ends, and new ones are refused
    why: str = ""  # they end, as they tell

    def session(self, session_id: str) -> FakeSession:
        return self.sessions.setdefault(session_id, FakeSession())

    def failing(self, name: str) -> JSONResponse | None:
        """The answer of a call that is to fail."""
        if name not in self.fail:
            return None
        status, error = self.fail[name]
        return JSONResponse({"error": error}, status)
