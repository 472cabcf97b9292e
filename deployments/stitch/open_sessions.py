"""The sessions that a Stitch replica keeps open. The file is the truth, this is a cache; knows no model and no Ray."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

from models.errors import ClosedError, FencedError, InputError
from models.media.encode import MediaSpec
from models.stitch.index import UtteranceRecord
from models.stitch.session import SessionFile
from models.stitch.store import SessionStore
from models.types import PreparedAvatar

P = ParamSpec("P")
T = TypeVar("T")


def _alone(method: Callable[Concatenate[OpenSessions, P], T]) -> Callable[Concatenate[OpenSessions, P], T]:
    @wraps(method)
    def locked(self: OpenSessions, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class OpenSessions:
    """Finds, begins and resets sessions under one folder.

    Safe from several threads; whoever writes to a session, or reads one that may be written to, holds `lock`.
    """

    def __init__(self, root: Path, capacity: int, admit: Callable[[], None] = lambda: None) -> None:
        """admit: counts a session that speech is about to open, or raises where there is no room for it."""
        self.lock = RLock()
        self.store = SessionStore(root)
        self._admit = admit
        self._capacity = capacity
        self._open: OrderedDict[str, SessionFile] = OrderedDict()
        self._last: dict[str, dict[str, Any]] = {}  # the latest summary of each open session

    @_alone
    def find(self, session_id: str) -> SessionFile | None:
        """The session with all that was written to it, here or elsewhere; None where there is none. Raises IdError."""
        if not self.store.exists(session_id):
            self._forget(session_id)
            return None
        session = self._open.get(session_id)
        if session is None:
            session = self._keep(session_id, self.store.open(session_id))
        session.refresh()
        return session

    @_alone
    def claim(self, session_id: str, spec: MediaSpec, avatar: PreparedAvatar) -> SessionFile:
        """The session as this replica's to write, made if need be.

        A session without video takes the avatar and the spec; one with video keeps its own. Raises IdError, OSError,
        QuotaError; InputError or FencedError where another replica has given it another avatar or format meanwhile.
        """
        session = self.find(session_id)
        if session is None:
            self._admit()
            session = self.store.create(session_id, spec, avatar.avatar_id, avatar.version)
        elif not session.frames and (session.avatar_id != avatar.avatar_id or session.spec != spec):
            session.reset(spec, avatar_id=avatar.avatar_id, avatar_version=avatar.version)
        self._keep(session_id, session)
        session.acquire()
        refuse_other_avatar(session, avatar.avatar_id)
        if session.spec != spec:
            raise FencedError(
                f"The session {session.session_id!r} was given another format meanwhile.", "Send the request again."
            )
        return session

    @_alone
    def reset(self, session_id: str) -> bool:
        """Start the session afresh; False where there is none. Raises IdError."""
        session = self.find(session_id)
        if session is not None:
            session.reset()
        self._last.pop(session_id, None)
        return session is not None

    @_alone
    def remove(self, session_id: str) -> bool:
        """Delete the session and its video; False where there is none. Raises IdError."""
        self._forget(session_id)
        existed = self.store.exists(session_id)
        if existed:
            self.store.remove(session_id)
        return existed

    @_alone
    def finish(self, session_id: str) -> dict[str, Any]:
        """Close the session for good, and return its facts. Raises SessionNotFound, IdError."""
        session = self.find(session_id) or self.store.open(session_id)
        session.acquire()
        session.finish()
        return self.describe(session_id)

    def remember(self, session_id: str, summary: dict[str, Any]) -> None:
        """Keep the summary of a session's latest utterance for as long as the session is open here."""
        if session_id in self._open:
            self._last[session_id] = summary

    @_alone
    def describe(self, session_id: str, transcript: bool = True) -> dict[str, Any]:
        """Facts of a session; `size` is how many bytes of its video are whole. Raises SessionNotFound, IdError.

        transcript: with what was said, word by word, which takes the longer the more it is; and the latest summary.
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
        said = [told(line) for line in session.transcript()]
        return {**facts, "utterances": said, "last": self._last.get(session_id)}

    def _keep(self, session_id: str, session: SessionFile) -> SessionFile:
        self._open[session_id] = session
        self._open.move_to_end(session_id)
        while len(self._open) > self._capacity:
            self._forget(next(iter(self._open)))
        return session

    def _forget(self, session_id: str) -> None:
        self._last.pop(session_id, None)
        if (session := self._open.pop(session_id, None)) is not None:
            session.close()


def told(line: UtteranceRecord) -> dict[str, Any]:
    """What dataclasses.asdict makes of it, in a tenth of the time: an hour's talk has thousands of words."""
    sentences = [
        {
            "text": sentence.text,
            "start_s": sentence.start_s,
            "end_s": sentence.end_s,
            "words": tuple({"text": w.text, "start_s": w.start_s, "end_s": w.end_s} for w in sentence.words),
        }
        for sentence in line.sentences
    ]
    return {
        "number": line.number,
        "text": line.text,
        "start_s": line.start_s,
        "end_s": line.end_s,
        "interrupted": line.interrupted,
        "sentences": tuple(sentences),
    }


def refuse_other_avatar(session: SessionFile | None, avatar_id: str | None) -> None:
    """A session with video may not change its avatar: its file has one picture format. Raises InputError."""
    if session is not None and session.frames and avatar_id not in (None, session.avatar_id):
        raise InputError(
            f"The session {session.session_id!r} shows the avatar {session.avatar_id!r}, not {avatar_id!r}.",
            f"Use another session_id, or GET /reset?session_id={session.session_id} first.",
        )


def refuse_closed(session: SessionFile | None, longest_minutes: float = float("inf")) -> None:
    """Nothing more is said in a closed session, or in one that is as long as it may get. Raises ClosedError."""
    if session is None or not (session.closed or session.duration_s >= longest_minutes * 60):
        return
    why = "is closed" if session.closed else f"is {longest_minutes:g} minutes long, and may not get longer"
    raise ClosedError(
        f"The session {session.session_id!r} {why}.",
        f"Open another one, or start it afresh: GET /reset?session_id={session.session_id}.",
    )
