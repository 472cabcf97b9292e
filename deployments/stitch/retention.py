"""Limits on the number, size and age of the sessions in one folder, shared by all replicas that use it.

Ages are in time during which the server ran (models.runtime.service_clock).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from deployments.common.metrics import set_gauge
from models.errors import DiskFullError, QuotaError
from models.runtime.disk_full import writing_to
from models.runtime.service_clock import ServiceClock
from models.stitch.disk import INDEX, META
from models.stitch.store import SessionStore

LEASE_FILE = "in-use"  # in a session's folder; any replica touches it while the session is watched or speaks
LEASE_S = 90.0  # how long a lease is valid: three times the interval of its renewal
MIN_SURVEY_INTERVAL_S = 1.0  # a count that says "full" is repeated if it is older than this


@dataclass(frozen=True, slots=True)
class Limits:
    """max_idle_s: sessions without speech and viewers for this long are removed; 0: never."""

    max_sessions: int
    max_bytes: float
    max_idle_s: float


@dataclass(slots=True)
class Retention:
    """Counts sessions and bytes in `survey`, and before the first check. `survey` must run every 30 s or so."""

    store: SessionStore
    limits: Limits
    sessions: int = 0
    bytes: int = 0
    _surveyed_s: float = float("-inf")  # by time.monotonic
    _clock: ServiceClock = field(init=False)

    def __post_init__(self) -> None:
        self._clock = ServiceClock(self.store.root)

    def check(self, new: bool) -> None:
        """Raises QuotaError if there is no room for more video, or for one more session (`new`)."""
        full = (new and self.sessions >= self.limits.max_sessions) or self.bytes >= self.limits.max_bytes
        age_s = time.monotonic() - self._surveyed_s
        if age_s == float("inf") or (full and age_s > MIN_SURVEY_INTERVAL_S):  # sessions may have been removed
            self.survey()
        if new and self.sessions >= self.limits.max_sessions:
            raise QuotaError(
                f"There are {self.sessions} sessions; the limit is {self.limits.max_sessions}.",
                "Delete some, or raise max_sessions of Stitch.",
            )
        if self.bytes >= self.limits.max_bytes:
            raise QuotaError(
                f"The sessions use {self.bytes / 2**30:.1f} GB; the limit is {self.limits.max_bytes / 2**30:g} GB.",
                "Delete some, or raise max_sessions_gb of Stitch.",
            )

    def opened(self) -> None:
        """Count a session that was created now."""
        self.sessions += 1

    def removed(self) -> None:
        """Count again in the next check: a session was removed."""
        self._surveyed_s = float("-inf")

    def survey(self) -> None:
        """Count sessions and their bytes; takes a few microseconds per file."""
        self._tick()
        sessions = size = 0
        before = self.sessions
        for folder in os.scandir(self.store.root):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                files = {file.name: file.stat().st_size for file in os.scandir(folder.path)}
                size += sum(files.values())
                sessions += META in files  # without it, the creation has failed
            except FileNotFoundError:  # removed meanwhile
                continue
        opened_meanwhile = self.sessions - before
        self.sessions, self.bytes = sessions + opened_meanwhile, size
        self._surveyed_s = time.monotonic()
        disk = shutil.disk_usage(self.store.root)
        set_gauge("warmtalk_disk_free_ratio", disk.free / disk.total)
        set_gauge("warmtalk_sessions", self.sessions)
        set_gauge("warmtalk_sessions_used_ratio", self.bytes / self.limits.max_bytes)

    def renew_leases(self, session_ids: Iterable[str]) -> None:
        """Mark sessions as in use for LEASE_S, for all replicas."""
        for session_id in session_ids:
            # removed meanwhile; or the disk is full, and the session can be watched as long as it exists
            with contextlib.suppress(FileNotFoundError, DiskFullError), writing_to(self.store.root):
                (self.store.root / session_id / LEASE_FILE).touch()

    def expired(self) -> list[str]:
        """Sessions without speech and viewers for longer than the limit; the longest idle first."""
        if not self.limits.max_idle_s:
            return []
        self._tick()
        ages = [(self._idle_s(session_id), session_id) for session_id in self.store.list()]
        return [session_id for idle_s, session_id in sorted(ages, reverse=True) if idle_s > self._max_idle_s]

    def has_expired(self, session_id: str) -> bool:
        """Whether the session is still expired: it may have been used since `expired` ran."""
        return bool(self.limits.max_idle_s) and self._idle_s(session_id) > self._max_idle_s

    def _tick(self) -> None:
        with contextlib.suppress(DiskFullError):  # the clock stands still, and nothing expires
            self._clock.tick()

    @property
    def _max_idle_s(self) -> float:
        return max(self.limits.max_idle_s, LEASE_S)

    def _idle_s(self, session_id: str) -> float:
        """Time since the latest speech or lease; 0 if the session does not exist."""
        ages = []
        for name in (META, INDEX, LEASE_FILE):
            with contextlib.suppress(FileNotFoundError):
                ages.append(self._clock.age_s((self.store.root / session_id / name).stat().st_mtime))
        return min(ages, default=0.0)
