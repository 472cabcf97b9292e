"""How many sessions there may be, how large, and for how long. Knows the sessions' folder; no stage and no HTTP."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from models.errors import QuotaError
from models.stitch.disk import INDEX
from models.stitch.store import SessionStore

SIGN = "in-use"  # in a session's folder: touched while somebody watches it, or it speaks, by whichever replica
LEASE_S = 90.0  # how long a sign is good: three times the pause between two


SURVEYED_S = 1.0  # before what was counted so long ago is believed to be too much, it is counted again


@dataclass(frozen=True, slots=True)
class Limits:
    """max_idle_s: a session in which nothing was said, and which nobody watched, for so long is removed; 0: never."""

    max_sessions: int
    max_bytes: float
    max_idle_s: float


@dataclass(slots=True)
class Retention:
    """Counts sessions and bytes when told to, and the first time that somebody asks."""

    store: SessionStore
    limits: Limits
    sessions: int = 0
    bytes: int = 0
    _surveyed_s: float = float("-inf")  # by time.monotonic

    def check(self, new: bool) -> None:
        """Raises QuotaError where there is no room for another session (`new`), or for more video."""
        full = (new and self.sessions >= self.limits.max_sessions) or self.bytes >= self.limits.max_bytes
        age_s = time.monotonic() - self._surveyed_s
        if age_s == float("inf") or (full and age_s > SURVEYED_S):  # some may have been removed, here or elsewhere
            self.survey()
        if new and self.sessions >= self.limits.max_sessions:
            raise QuotaError(
                f"There are {self.sessions} sessions already, and no more may be opened.",
                "Delete some, or raise max_sessions of Stitch.",
            )
        if self.bytes >= self.limits.max_bytes:
            raise QuotaError(
                f"The sessions take {self.bytes / 2**30:.1f} GB, and may take no more.",
                "Delete some, or raise max_sessions_gb of Stitch.",
            )

    def opened(self) -> None:
        self.sessions += 1

    def survey(self) -> None:
        """Count sessions and their bytes; it takes a few microseconds a file."""
        sessions = size = 0
        before = self.sessions
        for folder in os.scandir(self.store.root):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                size += sum(file.stat().st_size for file in os.scandir(folder.path))
                sessions += 1
            except FileNotFoundError:  # removed meanwhile
                continue
        self.sessions, self.bytes = (
            sessions + self.sessions - before,
            size,
        )  # those that were opened meanwhile count, too
        self._surveyed_s = time.monotonic()

    def hold(self, session_ids: Iterable[str]) -> None:
        """Leave a sign, which every replica sees, that these sessions are in use. To be renewed within LEASE_S."""
        for session_id in session_ids:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                (self.store.root / session_id / SIGN).touch()

    def expired(self) -> list[str]:
        """Sessions in which nothing was said, and which nobody watched, for too long; the oldest first."""
        if not self.limits.max_idle_s:
            return []
        ages = [(self._idle_s(session_id), session_id) for session_id in self.store.list()]
        return [session_id for idle_s, session_id in sorted(ages, reverse=True) if idle_s > self._longest_s]

    def has_expired(self, session_id: str) -> bool:
        """Whether it still has: somebody may have come since `expired` looked."""
        return bool(self.limits.max_idle_s) and self._idle_s(session_id) > self._longest_s

    @property
    def _longest_s(self) -> float:
        return max(self.limits.max_idle_s, LEASE_S)

    def _idle_s(self, session_id: str) -> float:
        """Since the last word or the last sign; 0 where there is no such session."""
        folder, used_s = self.store.root / session_id, 0.0
        try:
            said_s = (folder / INDEX).stat().st_mtime
        except FileNotFoundError:
            return 0.0
        with contextlib.suppress(FileNotFoundError):
            used_s = (folder / SIGN).stat().st_mtime
        return time.time() - max(said_s, used_s)
