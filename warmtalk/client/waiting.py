"""How long a client waits for a job: what it makes of each look at it, and of a server that is away meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from warmtalk.client import calls
from warmtalk.client.results import ChatJob

OUTAGE_S = 60.0  # a server restarts in less


class Waiting:
    """One wait for a job, from now on. It looks at no server itself: both clients do."""

    def __init__(self, timeout_s: float, progress: Callable[[ChatJob], None] | None) -> None:
        self._timeout_s, self._progress = timeout_s, progress
        self._end_s, self._lost_s = time.monotonic() + timeout_s, 0.0

    def is_in_vain(self) -> bool:
        """The server cannot be reached now: whether that has lasted too long."""
        self._lost_s = self._lost_s or time.monotonic()
        return time.monotonic() > min(self._end_s, self._lost_s + OUTAGE_S)

    def take(self, known: ChatJob) -> ChatJob | None:
        """The job once it is answered; None: it is to be looked at again. Raises ChatFailed, also where it is late."""
        self._lost_s = 0.0
        if self._progress:
            self._progress(known)
        if known.finished:
            return calls.answered(known)
        if time.monotonic() > self._end_s:
            raise calls.late(known, self._timeout_s)
        return None
