"""Writes and reads `emsg` boxes: events between the fragments of a live stream. Players skip events they do not know.

Format: ISO/IEC 23009-1 (DASH), 5.10.3.3, version 1. `scheme_id_uri` is SCHEME, `value` is the kind of the event, and
`message_data` is a JSON object in UTF-8. Event times are on the clock of the stream.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from models.media import mp4 as boxes

SCHEME = "urn:warmtalk:live:1"
TIMESCALE = 1000  # ticks per second
UNKNOWN_DURATION = 0xFFFFFFFF  # as defined by the standard


def event_box(kind: str, message: dict[str, Any], number: int, at_s: float, duration_s: float | None = None) -> bytes:
    """One event box, to be sent before the fragment that it describes. number: the event's id, unique in the stream."""
    ticks = UNKNOWN_DURATION if duration_s is None else round(duration_s * TIMESCALE)
    times = struct.pack(">IQII", TIMESCALE, round(max(0.0, at_s) * TIMESCALE), ticks, number & 0xFFFFFFFF)
    names = SCHEME.encode() + b"\0" + kind.encode() + b"\0"
    return boxes.full_box(b"emsg", 1, 0, times, names, json.dumps(message, ensure_ascii=False).encode())


class EventReader:
    """Finds events in a stream that arrives in chunks of any size. Buffers only box headers and `emsg` boxes."""

    def __init__(self) -> None:
        self._head = b""  # bytes of a box header, or of an `emsg` box, received so far
        self._skip = 0  # remaining bytes of the box that is being skipped

    def push(self, part: bytes) -> list[tuple[str, dict[str, Any]]]:
        """(kind, message) of each event that `part` completes. Raises ValueError if the stream is not an MP4."""
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
    """(kind, message) of each event in `data`, which consists of whole boxes."""
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
        raise ValueError("The stream is not a fragmented MP4.")
    return size
