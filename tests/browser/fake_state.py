"""The state of the fake server, which tests read and change."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi.responses import JSONResponse

from configs.schema import IngressConfig
from deployments.ingress.security.keys import Keys
from deployments.ingress.settings import IngressSettings

WORD_S = 0.32
STAGES = {
    "TTS": 92,
    "AudioFeatures": 140,
    "LipSync": 1320,
    "Enhance": 640,
    "Stitch": 410,
}  # busy milliseconds per sentence


@dataclass
class FakeSession:
    """One session. `until_s`: monotonic time at which its speech ends."""

    began_s: float = 0.0
    until_s: float = 0.0
    caption: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    interrupts: int = 0

    @property
    def speaks(self) -> bool:
        return self.began_s <= time.monotonic() < self.until_s

    def say(self, text: str) -> float:
        """Queue speech after the current one. Returns its duration in seconds."""
        length_s = max(1.0, WORD_S * len(text.split()))
        self.began_s = max(time.monotonic(), self.until_s)
        self.until_s = self.began_s + length_s
        self.caption = text
        return length_s


@dataclass
class State:
    """State that tests read and change. `reply`: the answer of /chat. `fail`: error per call name."""

    sessions: dict[str, FakeSession] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    reply: str = "Hello, nice to meet you. I am the face of a test, and I say what it wants to hear."
    think_s: float = 0.3
    fail: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    avatars: list[str] = field(default_factory=list)  # besides the embedded presenter
    uploads: list[tuple[str, bytes]] = field(default_factory=list)
    viewers: int = 0
    recognition: bool = False  # whether speech recognition is on
    heard: str = "What time is it?"  # transcription of any recording
    webrtc: Any = False  # whether WebRTC is offered; "lost": offered, but no media arrives
    ended: list[str] = field(default_factory=list)  # WebRTC connections closed by the page
    settings: IngressSettings = field(default_factory=lambda: IngressSettings.of(IngressConfig()))
    down: bool = False  # live streams end and new ones are refused
    warnings: list[str] = field(default_factory=list)  # parts of a text that are not spoken
    why: str = ""  # reason in the `ended` event

    def session(self, session_id: str) -> FakeSession:
        return self.sessions.setdefault(session_id, FakeSession())

    def require_key(self, key: str) -> None:
        """From now on, accept only requests with this API key."""
        self.settings = replace(self.settings, keys=Keys([key]))

    def failing(self, name: str) -> JSONResponse | None:
        """The error response of a call that should fail."""
        if name not in self.fail:
            return None
        status, error = self.fail[name]
        return JSONResponse({"error": error}, status)
