"""What a live stream tells beside its pictures: `emsg` boxes (ISO/IEC 23009-1) between its fragments, typed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from warmtalk.client.results import parsed

SCHEME = b"urn:warmtalk:live:1"


@dataclass(frozen=True, slots=True)
class Word:
    """A word, in seconds of this stream."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence from its first sound to its last, in seconds of this stream, whose first piece is at 0.

    A later one of the same id replaces it. words: where the voice knows them. cut: it was interrupted at end_s; text
    and words are then those that were heard.
    """

    id: int
    text: str
    start_s: float
    end_s: float
    words: list[Word] = field(default_factory=list)
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Making:
    """How far the utterance that is being made has come; `stages` as those of a Speech, so far."""

    frames: int = 0
    shown_frames: int = 0
    duration_s: float = 0.0
    ttff_ms: float | None = None
    spoken_chars: int = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream ends here, and why."""

    reason: Literal["closed", "removed", "expired", "reset", "replaced", "stopped", "slow"]


LiveEvent = Caption | Making | Ended


class EventReader:
    """Finds the events in a stream that comes in parts of any size; keeps no more of it than a box's header."""

    def __init__(self) -> None:
        self._head = bytearray()  # of a box, or a whole box that is wanted
        self._skip = 0  # bytes of the box before that are still to come

    def push(self, part: bytes) -> list[LiveEvent]:
        """The events that the part completes; those of a newer server that are not known here are passed over."""
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
    """Version 1: 12 bytes of header, 20 of times, two names that end in 0, and the message."""
    if box[8:9] != b"\1":
        return None
    scheme, kind, message = box[32:].split(b"\0", 2)
    if scheme != SCHEME:
        return None
    told: dict[str, Any] = json.loads(message)
    if kind == b"caption":
        return parsed(Caption, told | {"words": [parsed(Word, word) for word in told.get("words", [])]})
    kinds = {b"making": Making, b"ended": Ended}
    return parsed(kinds[kind], told) if kind in kinds else None
