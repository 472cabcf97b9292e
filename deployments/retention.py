"""How many sessions there may be, how large, and for how long. Knows the sessions' folder; no stage and no HTTP."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from models.errors import QuotaError
from models.stitch.disk import INDEX
from models.stitch.store import SessionStore


@dataclass(frozen=True, slots=True)
class Limits:
    """max_idle_s: a session in which nothing was said for so long is removed; 0: never."""

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
    _surveyed: bool = False

    def check(self, new: bool) -> None:
        """Raises QuotaError where there is no room for another session (`new`), or for more video."""
        if not self._surveyed:
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
        self._surveyed = True

    def expired(self) -> list[str]:
        """Sessions in which nothing was said for too long, the oldest first."""
        if not self.limits.max_idle_s:
            return []
        found = []
        for session_id in self.store.list():
            try:
                age_s = time.time() - (self.store.root / session_id / INDEX).stat().st_mtime
            except FileNotFoundError:
                continue
            if age_s > self.limits.max_idle_s:
                found.append((age_s, session_id))
        return [session_id for _, session_id in sorted(found, reverse=True)]
