"""The directory of sessions: which Stitch replica owns which session, and how busy each replica is.

An entry is a hint. The truth is the fencing epoch in the session's file: a wrong entry costs a refused write, never a
damaged file. So the directory keeps everything in memory, and a new one is filled again by the replicas' reports.

A session stays with its owner until the owner releases it or is gone. Serve takes a stopping replica off the list of
its routers; while that replica *drains*, it remains the owner of the sessions that speak.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cachetools import TTLCache

MAX_SESSIONS = 100_000
FORGET_S = 600.0  # a session that no router asks for and no replica reports is forgotten after this time
CONFIRM_S = 2.0  # Serve also takes a replica off its list while it applies a new user_config; that is no drain
SILENT_S = 5.0  # a replica that is off the list and has not reported for this long is gone
GATHER_S = 3.0  # how long a new directory waits for the first report of every replica
UNREPORTED_S = 10.0  # an assignment counts as load for this long, unless the replica reports the session before
MOVED_S = 10.0  # for this long after a session lost its owner, its viewers are expected at the new one
IDLE_SHARE = 0.2  # weight of a watched session that does not speak, in utterances: it may speak soon
DEFAULT_SHARE, MIN_SHARE = 0.5, 0.1  # of a render thread for one utterance, until it is measured; and at least


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica renders.

    busy: share of its render threads' time that rendering takes, 0 to 1. backlog_s: time in which all its threads
    render the speech that has been synthesised. utterances: all, waiting ones included. starting: those of which no
    frame has been rendered yet. watched, sessions: sessions that are watched, and all that were used recently.
    """

    threads: int = 1
    busy: float = 0.0
    backlog_s: float = 0.0
    utterances: int = 0
    starting: int = 0
    watched: int = 0
    sessions: int = 0


@dataclass(frozen=True, slots=True)
class SessionUse:
    """What a replica does with a session."""

    speaking: bool = False  # it has an utterance, which may be waiting
    watched: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """From a replica, about once per second. draining: what the directory told it last."""

    replica: str
    load: Load
    sessions: Mapping[str, SessionUse]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """To a report. directory: changes when the directory is a new one. lost: sessions that others own now."""

    directory: str
    draining: bool
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """The owner of a session; "" if no replica can take it. info: how to reach it, as its routers described it."""

    directory: str
    replica: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The owner of a session, the claiming replica if that is possible.

    moved: it had another owner moments ago. watched: its viewers will subscribe here.
    """

    owner: str
    moved: bool = False
    watched: bool = False


@dataclass(slots=True)
class _Entry:
    owner: str  # "": released
    use: SessionUse = field(default_factory=SessionUse)
    moved_s: float = float("-inf")  # when its previous owner released it or was found to be gone


@dataclass(slots=True)
class _Replica:
    load: Load = field(default_factory=Load)
    info: Any = None
    reported_s: float = float("-inf")
    listed: bool = False  # some router has had it on its list
    absent_s: float | None = None  # when it was taken off the list
    dead: bool = False
    active: frozenset[str] = frozenset()  # sessions in its latest report
    unreported: dict[str, float] = field(default_factory=dict)  # sessions assigned since, and when


class SessionDirectory:
    """Plain bookkeeping. All times are those of `now`, in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.id = uuid.uuid4().hex
        self._now, self._started_s = now, now()
        self._entries: TTLCache[str, _Entry] = TTLCache(MAX_SESSIONS, FORGET_S, timer=now)
        self._replicas: dict[str, _Replica] = {}

    def __len__(self) -> int:
        """How many sessions have an entry."""
        return len(self._entries)

    # --- from routers

    def update(self, listed: Mapping[str, Any]) -> None:
        """The replicas on a router's list, with their infos. Each router sends it when its list changes."""
        now_s = self._now()
        for replica, info in listed.items():
            known = self._replicas.setdefault(replica, _Replica())
            known.info, known.listed, known.absent_s = info, True, None
        for replica, known in list(self._replicas.items()):
            if replica not in listed and known.listed and known.absent_s is None:
                known.absent_s = now_s
            if self._gone(replica) and now_s - max(known.reported_s, known.absent_s or 0.0) > FORGET_S:
                del self._replicas[replica]

    def unheard(self, listed: Collection[str]) -> bool:
        """Whether the directory is new, and some of these replicas have not reported what they own yet."""
        new = self._now() - self._started_s < GATHER_S
        return new and any(self._replicas.get(r, _Replica()).reported_s == float("-inf") for r in listed)

    def route(self, session: str, listed: Mapping[str, Any], dead: Collection[str] = ()) -> Route:
        """The owner of a session; a new session, or one whose owner is gone, gets the replica with the most room.

        listed: the replicas on the router's list, with their infos. dead: replicas whose process the router saw end.
        """
        for replica in dead:
            self._replicas.setdefault(replica, _Replica()).dead = True
        for replica, info in listed.items():
            known = self._replicas.setdefault(replica, _Replica())
            known.info, known.listed = info, True
        entry = self._entries.get(session)
        if entry is None or self._gone(entry.owner):
            usable = [replica for replica in listed if not self._leaving(replica)]
            usable = usable or [replica for replica in listed if not self._gone(replica)]
            if not usable:
                return Route(self.id, "")
            if entry is not None and entry.owner:
                entry.moved_s = self._now()
            entry = entry or _Entry("")
            entry.owner = min(usable, key=self._load_of)
            self._replicas[entry.owner].unreported[session] = self._now()
        self._entries[session] = entry  # its time to live begins again
        return Route(self.id, entry.owner, self._replicas[entry.owner].info)

    # --- from replicas

    def report(self, report: Report) -> Reply:
        """Take what a replica renders and owns. A session with two owners stays with the one where it speaks."""
        now_s, me = self._now(), self._replicas.setdefault(report.replica, _Replica())
        if report.draining and not me.listed and me.absent_s is None:  # this directory is new
            me.absent_s = now_s - CONFIRM_S
        me.load, me.reported_s = report.load, now_s
        for session in me.active - report.sessions.keys():
            if (entry := self._entries.get(session)) is not None and entry.owner == report.replica:
                entry.use = SessionUse()
        me.active = frozenset(report.sessions)
        lost = [session for session, use in report.sessions.items() if not self._keep(session, report.replica, use)]
        fresh = {s: at_s for s, at_s in me.unreported.items() if now_s - at_s < UNREPORTED_S}
        me.unreported = {s: at_s for s, at_s in fresh.items() if s not in report.sessions}
        return Reply(self.id, self.draining(report.replica), tuple(lost))

    def _keep(self, session: str, replica: str, use: SessionUse) -> bool:
        """Whether a replica that reports a session is its owner, perhaps from now on."""
        entry = self._entries.get(session)
        if entry is None:
            entry = _Entry(replica)
        elif entry.owner != replica:
            released = not entry.owner and self._now() - entry.moved_s < MOVED_S  # this report is older than that
            stays = self._leaving(replica) or use.speaking <= entry.use.speaking
            if released or (stays and not self._gone(entry.owner)):
                return False
            entry.owner = replica
        entry.use = use
        self._entries[session] = entry
        return True

    def claim(self, session: str, replica: str) -> Claim:
        """A replica wants to speak or show a session that it does not hold yet."""
        entry = self._entries.get(session) or _Entry(replica)
        if entry.owner != replica:
            routed = any(known.listed for known in self._replicas.values())  # else Stitch has another request router
            if routed and not self._gone(entry.owner):
                return Claim(entry.owner)
            entry.owner, entry.moved_s = replica, self._now() if entry.owner else entry.moved_s
        self._entries[session] = entry
        moved = self._now() - entry.moved_s < MOVED_S
        return Claim(replica, moved, moved and entry.use.watched)

    def release(self, replica: str, session: str, watched: bool) -> None:
        """The owner gives up a session. watched: its viewers will look for the new owner."""
        entry = self._entries.get(session)
        if entry is not None and entry.owner == replica:
            entry.owner, entry.moved_s, entry.use = "", self._now(), SessionUse(watched=watched)

    def release_all_but(self, replica: str, kept: Collection[str], watched: Collection[str]) -> None:
        """The owner gives up all sessions except some. watched: those of which viewers will look for the new owner."""
        owned = [session for session, entry in list(self._entries.items()) if entry.owner == replica]
        for session in owned:
            if session not in kept:
                self.release(replica, session, session in watched)

    # --- replicas

    def draining(self, replica: str) -> bool:
        """Whether a replica must release its sessions: Serve stops it, and there is another one to take them."""
        return self._leaving(replica) and any(
            known.listed and other != replica and not self._leaving(other) for other, known in self._replicas.items()
        )

    def _leaving(self, replica: str) -> bool:
        known = self._replicas.get(replica)
        if known is None or known.dead:
            return True
        return known.absent_s is not None and self._now() - known.absent_s >= CONFIRM_S

    def _gone(self, replica: str) -> bool:
        """Whether a replica can own nothing any more."""
        known = self._replicas.get(replica)
        if known is None or known.dead:
            return True
        if known.listed and known.absent_s is None:
            return False
        return self._now() - max(known.absent_s or 0.0, known.reported_s) >= SILENT_S

    def _load_of(self, replica: str) -> tuple[float, int]:
        """The load that decides where a new session goes, in render threads' time; then the number of sessions."""
        known = self._replicas[replica]
        load, since_s = known.load, self._now() - UNREPORTED_S
        unreported = sum(at_s > since_s for at_s in known.unreported.values())
        coming = load.starting + unreported + IDLE_SHARE * max(0, load.watched - load.utterances)
        expected = self._utterance_share() * coming / load.threads
        return round(load.busy + load.backlog_s + expected, 3), load.sessions + unreported

    def _utterance_share(self) -> float:
        """How much of a render thread one utterance takes on average now."""
        loads = [known.load for replica, known in self._replicas.items() if not self._gone(replica)]
        rendering = sum(load.utterances - load.starting for load in loads)
        if rendering <= 0:
            return DEFAULT_SHARE
        return max(MIN_SHARE, sum(load.busy * load.threads for load in loads) / rendering)
