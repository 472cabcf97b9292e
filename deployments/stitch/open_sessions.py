"""The session files that a Stitch replica keeps open. The file is the truth; this is an LRU cache of open files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

from cachetools import LRUCache

from models.errors import ClosedError, FencedError, InputError
from models.media.encode import MediaSpec
from models.stitch.index import UtteranceRecord
from models.stitch.session import SessionFile
from models.stitch.store import SessionStore
from models.types import PreparedAvatar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Open:
    session: SessionFile
    last_summary: dict[str, Any] | None = None  # of the session's latest utterance on this replica


class _OpenFiles(LRUCache[str, _Open]):
    """Closes the file of the session that was used least recently when the cache is full."""

    def popitem(self) -> tuple[str, _Open]:
        session_id, entry = super().popitem()
        entry.session.close()
        return session_id, entry


def _locked(method: Callable[Concatenate[OpenSessions, P], T]) -> Callable[Concatenate[OpenSessions, P], T]:
    @wraps(method)
    def locked(self: OpenSessions, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class OpenSessions:
    """Finds, creates and resets sessions in one folder.

    Thread-safe. Hold `lock` while you write to a session, or read one that may be written to.
    """

    def __init__(self, root: Path, capacity: int, admit: Callable[[], None] = lambda: None) -> None:
        """admit: called before speech creates a session; counts it, or raises if no more may be created."""
        self.lock = RLock()
        self.store = SessionStore(root)
        self._admit = admit
        self._open = _OpenFiles(capacity)

    @_locked
    def find(self, session_id: str) -> SessionFile | None:
        """The session, up to date with the file; None if it does not exist. Raises IdError, CorruptError, OSError."""
        if not self.store.exists(session_id):
            self._close(session_id)
            return None
        entry = self._open.get(session_id)
        session = entry.session if entry is not None else self._keep(session_id, self.store.open(session_id))
        session.refresh()
        if entry is None and session.is_damaged():
            session.recover()
        return session

    @_locked
    def claim(self, session_id: str, spec: MediaSpec, avatar: PreparedAvatar) -> SessionFile:
        """The session with this replica as its writer, created if it does not exist.

        A session without video takes the avatar and the spec; one with video keeps its own. Raises IdError, OSError,
        QuotaError; InputError or FencedError if another replica has given it another avatar or format meanwhile.
        """
        session = self.find(session_id)
        if session is None:
            self._admit()
            session = self._keep(session_id, self.store.create(session_id, spec, avatar.avatar_id, avatar.version))
        elif not session.frames and (session.avatar_id != avatar.avatar_id or session.spec != spec):
            session.reset(spec, avatar_id=avatar.avatar_id, avatar_version=avatar.version)
        session.acquire()
        refuse_other_avatar(session, avatar.avatar_id)
        if session.spec != spec:
            raise FencedError(
                f"Another replica has given the session {session.session_id!r} another format.",
                "Send the request again.",
            )
        return session

    @_locked
    def reset(self, session_id: str) -> bool:
        """Empty the session; False if it does not exist. Raises IdError."""
        session = self.find(session_id)
        if session is not None:
            session.reset()
            self._open[session_id].last_summary = None
        return session is not None

    @_locked
    def remove(self, session_id: str) -> bool:
        """Delete the session and its video; False if it does not exist. Raises IdError."""
        self._close(session_id)
        existed = self.store.exists(session_id)
        if existed:
            self.store.remove(session_id)
        return existed

    @_locked
    def finish(self, session_id: str) -> dict[str, Any]:
        """Close the session for speech, and return its facts. Raises SessionNotFound, IdError."""
        session = self.find(session_id) or self.store.open(session_id)
        session.acquire()
        session.finish()
        return self.describe(session_id)

    @_locked
    def close(self, session_id: str) -> None:
        """Close the session's file if it is open here: another replica writes to it now."""
        self._close(session_id)

    @_locked
    def remember(self, session_id: str, summary: dict[str, Any]) -> None:
        """Keep the summary of a session's latest utterance while the session is open here."""
        if session_id in self._open:
            self._open[session_id].last_summary = summary

    @_locked
    def describe(self, session_id: str, transcript: bool = True) -> dict[str, Any]:
        """Facts of a session; `size` is the bytes of complete video. Raises SessionNotFound, IdError.

        transcript: also all utterances with their words, whose cost grows with the session, and the latest summary.
        """
        session = self.find(session_id) or self.store.open(session_id)
        facts = {
            "session_id": session_id,
            "avatar_id": session.avatar_id,
            "frames": session.frames,
            "duration_s": round(session.duration_s, 3),
            "closed": session.closed,
            "size": session.size,
            "video_path": str(session.path),
            "video_tag": session.video_tag,
            "video_url": f"/sessions/{session_id}/video.mp4",
        }
        if not transcript:
            return facts
        utterances = [utterance_json(record) for record in session.transcript()]
        entry = self._open.get(session_id)  # None: another replica created the session after `find` looked for it
        return {**facts, "utterances": utterances, "last": entry.last_summary if entry is not None else None}

    def _keep(self, session_id: str, session: SessionFile) -> SessionFile:
        self._open[session_id] = _Open(session)
        return session

    def _close(self, session_id: str) -> None:
        if session_id in self._open:
            self._open.pop(session_id).session.close()


def utterance_json(record: UtteranceRecord) -> dict[str, Any]:
    """The same as dataclasses.asdict in a tenth of the time: a talk of an hour has thousands of words."""
    sentences = [
        {
            "text": sentence.text,
            "start_s": sentence.start_s,
            "end_s": sentence.end_s,
            "words": tuple({"text": w.text, "start_s": w.start_s, "end_s": w.end_s} for w in sentence.words),
        }
        for sentence in record.sentences
    ]
    return {
        "number": record.number,
        "text": record.text,
        "start_s": record.start_s,
        "end_s": record.end_s,
        "interrupted": record.interrupted,
        "sentences": tuple(sentences),
    }


def refuse_other_avatar(session: SessionFile | None, avatar_id: str | None) -> None:
    """A session with video keeps its avatar, because its file has one picture format. Raises InputError."""
    if session is not None and session.frames and avatar_id not in (None, session.avatar_id):
        raise InputError(
            f"The session {session.session_id!r} shows the avatar {session.avatar_id!r}, not {avatar_id!r}.",
            f"Use another session_id, or GET /reset?session_id={session.session_id} first.",
        )


def refuse_closed(session: SessionFile | None, max_minutes: float = float("inf")) -> None:
    """Raises ClosedError for a session that is closed or has its maximum length."""
    if session is None or not (session.closed or session.duration_s >= max_minutes * 60):
        return
    why = "is closed" if session.closed else f"has reached its maximum length of {max_minutes:g} minutes"
    raise ClosedError(
        f"The session {session.session_id!r} {why}.",
        f"Open another session, or empty this one: GET /reset?session_id={session.session_id}.",
    )
