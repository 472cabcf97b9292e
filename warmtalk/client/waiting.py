"""Waiting for a chat job: when it is finished, when it is late, and how long the server may be unreachable."""

from __future__ import annotations

import time
from collections.abc import Callable

from warmtalk.client import calls
from warmtalk.client.results import ChatJob

POLL_S = 0.5
MAX_OUTAGE_S = 60.0  # a server restarts in less


class JobWait:
    """One wait for a job, which begins now. The clients poll the server and pass on what they find."""

    def __init__(self, timeout_s: float, progress: Callable[[ChatJob], None] | None) -> None:
        self._timeout_s, self._progress = timeout_s, progress
        self._end_s, self._unreachable_since_s = time.monotonic() + timeout_s, 0.0

    def give_up(self) -> bool:
        """Call when the server cannot be reached: whether the outage has lasted too long."""
        self._unreachable_since_s = self._unreachable_since_s or time.monotonic()
        return time.monotonic() > min(self._end_s, self._unreachable_since_s + MAX_OUTAGE_S)

    def take(self, job: ChatJob) -> ChatJob | None:
        """Call with the job's state: returns the finished job, or None to poll again.

        Raises ChatFailed if it failed or is not finished after the timeout.
        """
        self._unreachable_since_s = 0.0
        if self._progress:
            self._progress(job)
        if job.finished:
            return calls.answered(job)
        if time.monotonic() > self._end_s:
            raise calls.late(job, self._timeout_s)
        return None
