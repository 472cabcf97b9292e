"""Events inside a live stream: `emsg` boxes between its fragments, which players pass over. Pure.

ISO/IEC 23009-1 (DASH), 5.10.3.3, version 1: a time on the stream's own clock, and a message. Here the scheme is SCHEME,
the value says which event it is, and the message is a JSON object in UTF-8.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from models.media import mp4 as boxes

SCHEME = "urn:warmtalk:live:1"
TIMESCALE = 1000  # ticks a second
UNKNOWN_DURATION = 0xFFFFFFFF


def event_box(kind: str, message: dict[str, Any], number: int, at_s: float, duration_s: float | None = None) -> bytes:
    """An event as it stands in the stream, before the fragment that it belongs to. number: another one for each."""
    ticks = UNKNOWN_DURATION if duration_s is None else round(duration_s * TIMESCALE)
    times = struct.pack(">IQII", TIMESCALE, round(max(0.0, at_s) * TIMESCALE), ticks, number & 0xFFFFFFFF)
    names = SCHEME.encode() + b"\0" + kind.encode() + b"\0"
    return boxes.full_box(b"emsg", 1, 0, times, names, json.dumps(message, ensure_ascii=False).encode())


class EventReader:
    """Finds the events in a stream that comes in parts of any size; keeps no more of it than a box's header."""

    def __init__(self) -> None:
        self._head = b""  # of a box, or a whole box that is wanted
        self._skip = 0  # bytes of the box before that are still to come

    def push(self, part: bytes) -> list[tuple[str, dict[str, Any]]]:
        """(kind, message) of each event that the part completes. Raises ValueError where the stream is no MP4."""
        found: list[tuple[str, dict[str, Any]]] = []
        while part:
            if self._skip:
                passed = min(self._skip, len(part))
                self._skip, part = self._skip - passed, part[passed:]
                continue
            wanted = 8 if len(self._head) < 8 else _size(self._head)
            taken = min(wanted - len(self._head), len(part))
            self._head, part = self._head + part[:taken], part[taken:]
            if len(self._head) < 8:
                continue
            size, kind = _size(self._head), self._head[4:8]
            if kind != b"emsg":
                self._skip, self._head = size - len(self._head), b""
            elif len(self._head) == size:
                found += read_events(self._head)
                self._head = b""
        return found


def read_events(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """(kind, message) of each event among whole boxes."""
    found = []
    for kind, start, end in boxes.children(data, 0, len(data)):
        if kind == b"emsg" and data[start] == 1:
            scheme, name, message = data[start + 24 : end].split(b"\0", 2)
            if scheme == SCHEME.encode():
                found.append((name.decode(), json.loads(message)))
    return found


def _size(head: bytes) -> int:
    size = int.from_bytes(head[:4], "big")
    if size < 8:
        raise ValueError("The stream is no fragmented MP4.")
    return size
