"""The age of files in time during which the server ran, so that a clock that jumps makes no file older.

The age of a file is usually "now" minus its modification time. It is wrong after the wall clock was set, and a server
that was stopped, or a machine that was suspended, finds all files old at its start. This clock counts only time that
passed while some process ticked, and it is kept in a file, so that all processes and hosts that use a folder share it:

    .clock   JSON: [[begin, end, age], …], spans of the file system's time in which the server ran, oldest first, and
             the service time at the begin of each

A tick extends the last span, or begins a new one where the file system's time has jumped or nobody has ticked.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from models.errors import LockedError
from models.runtime.atomic_file import replace_file
from models.runtime.file_lock import hold_lock

NAME = ".clock"
MAX_STEP_S = 150.0  # a longer step between two ticks, or a step back, is a jump; it does not count
MAX_SPANS = 100

Span = tuple[float, float, float]


class ServiceClock:
    """The clock of one folder. `tick` at least once in MAX_STEP_S / 2 while the server runs."""

    def __init__(self, root: Path) -> None:
        self._path = root / NAME
        self._spans: list[Span] = []

    def tick(self) -> None:
        """Advance the clock, and read what other processes have added. Raises OSError."""
        with contextlib.suppress(LockedError), hold_lock(self._path.with_name(f"{NAME}.lock"), timeout_s=0.0):
            self._path.touch()  # by the clock of the file system, which also dates the files
            now_s = self._path.stat().st_mtime
            self._spans = _after_tick(_read(self._path), now_s)
            replace_file(self._path, json.dumps(self._spans).encode(), sync=False)

    def age_s(self, modified_s: float) -> float:
        """The service time since a file was modified; st_mtime, for instance. 0 before the first tick.

        Where the time is ambiguous, because the clock was set back, it is the shorter one.
        """
        if not self._spans:
            return 0.0
        begin_s, end_s, at_s = self._spans[-1]
        return at_s + end_s - begin_s - self._service_s(modified_s)

    def _service_s(self, modified_s: float) -> float:
        newest_s = self._spans[-1][1]
        if newest_s < modified_s <= newest_s + MAX_STEP_S:
            modified_s = newest_s  # since the last tick
        for begin_s, end_s, at_s in reversed(self._spans):
            if begin_s <= modified_s <= end_s:
                return at_s + modified_s - begin_s
        ended = [at_s + end_s - begin_s for begin_s, end_s, at_s in self._spans if end_s < modified_s]
        return max(ended, default=self._spans[0][2])


def _after_tick(spans: list[Span], now_s: float) -> list[Span]:
    if not spans:
        return [(now_s, now_s, 0.0)]
    begin_s, end_s, at_s = spans[-1]
    if 0 <= now_s - end_s <= MAX_STEP_S:
        return [*spans[:-1], (begin_s, now_s, at_s)]
    return [*spans, (now_s, now_s, at_s + end_s - begin_s)][-MAX_SPANS:]


def _read(path: Path) -> list[Span]:
    """The spans of the file; none if it is new or damaged: then all files count from now on."""
    try:
        spans = [(float(begin_s), float(end_s), float(at_s)) for begin_s, end_s, at_s in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return []
    return spans if all(map(math.isfinite, (value for span in spans for value in span))) else []
