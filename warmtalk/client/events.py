"""Events of a live stream: parses the `emsg` boxes (ISO/IEC 23009-1) between its fragments."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from warmtalk.client.results import parsed

SCHEME = b"urn:warmtalk:live:1"


@dataclass(frozen=True, slots=True)
class Word:
    """A word and its times, seconds from the start of the stream."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence from its first sound to its last, seconds from the start of the stream.

    A later caption with the same id replaces it. words: empty if the voice gives no word times. cut: it was interrupted
    at end_s; text and words are then those that were heard.
    """

    id: int
    text: str
    start_s: float
    end_s: float
    words: list[Word] = field(default_factory=list)
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Making:
    """Progress of the current utterance; `stages` as in Speech, so far."""

    frames: int = 0
    shown_frames: int = 0
    duration_s: float = 0.0
    ttff_ms: float | None = None
    spoken_chars: int = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream ends, and why."""

    reason: Literal["closed", "removed", "expired", "reset", "replaced", "stopped", "slow"]


LiveEvent = Caption | Making | Ended


class EventReader:
    """Finds the events in a stream that arrives in chunks of any size. Buffers one box header or one emsg box."""

    def __init__(self) -> None:
        self._head = bytearray()  # of the current box, or the whole box if it is an emsg
        self._skip = 0  # remaining bytes of a box without events

    def push(self, part: bytes) -> list[LiveEvent]:
        """Events completed by this chunk. Unknown kinds, from a newer server, are ignored."""
        found: list[LiveEvent] = []
        rest = memoryview(part)
        while rest:
            if self._skip:
                passed = min(self._skip, len(rest))
                self._skip, rest = self._skip - passed, rest[passed:]
                continue
            size = int.from_bytes(self._head[:4], "big") if len(self._head) >= 8 else 8
            taken = min(max(size, 8) - len(self._head), len(rest))
            self._head += rest[:taken]
            rest = rest[taken:]
            if len(self._head) < 8:
                continue
            size, kind = int.from_bytes(self._head[:4], "big"), bytes(self._head[4:8])
            if kind != b"emsg":
                self._skip = max(0, size - len(self._head))
                self._head.clear()
            elif len(self._head) >= size:
                if (event := _event(bytes(self._head))) is not None:
                    found.append(event)
                self._head.clear()
        return found


def _event(box: bytes) -> LiveEvent | None:
    """An emsg box of version 1: 12 bytes of header, 20 of times, two zero-terminated names, and the message."""
    if box[8:9] != b"\1":
        return None
    scheme, kind, message = box[32:].split(b"\0", 2)
    if scheme != SCHEME:
        return None
    event: dict[str, Any] = json.loads(message)
    if kind == b"caption":
        return parsed(Caption, event | {"words": [parsed(Word, word) for word in event.get("words", [])]})
    kinds = {b"making": Making, b"ended": Ended}
    return parsed(kinds[kind], event) if kind in kinds else None
