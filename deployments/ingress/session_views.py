"""Other views of a session's video, read from its folder: captions, a playlist, a download. Knows no stage, no HTTP."""

from __future__ import annotations

import re
import threading
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from models.errors import BusyError
from models.stitch.captions import webvtt
from models.stitch.export import export_faststart
from models.stitch.index import Totals
from models.stitch.playlist import Playlist
from models.stitch.session import SessionFile

VIDEO_URL = "video.mp4?tag={tag}"  # beside the playlist; a session that was reset answers other tags with 404
KEPT_VIEWS = 256  # sessions


def with_token(playlist: str, token: str) -> str:
    """A playlist whose addresses carry a token (access.py) as its own did."""
    return re.sub(r"video\.mp4\?[^\"\n]+", lambda url: f"{url[0]}&token={quote(token, safe='')}", playlist)


class Views:
    """Captions and playlists of sessions, made anew only where something was written since. For any thread.

    `facts` are what Stitch says of a session. A poll costs two looks at the disk; what a session gained, its own cost.
    Raises SessionNotFound, CorruptError.
    """

    def __init__(self) -> None:
        self._views: OrderedDict[str, _View] = OrderedDict()
        self._lock = threading.Lock()

    def captions(self, facts: dict[str, Any], words: bool = False) -> str:
        """WebVTT. words: with a timestamp before each word whose time the voice knows."""
        return self._of(facts).text("words" if words else "captions")

    def playlist(self, facts: dict[str, Any]) -> str:
        return self._of(facts).text("playlist")

    def _of(self, facts: dict[str, Any]) -> _View:
        path = facts["video_path"]
        with self._lock:
            view = self._views.get(path)
            if view is None or view.tag != facts["video_tag"]:
                view = self._views[path] = _View(_session(facts), facts["video_tag"])
            self._views.move_to_end(path)
            while len(self._views) > KEPT_VIEWS:
                self._views.popitem(last=False)
        return view


class _View:
    """One session's, from its start to its reset."""

    def __init__(self, session: SessionFile, tag: str) -> None:
        self.tag = tag
        self._session = session
        self._lock = threading.Lock()
        self._mark: tuple[int, int, int] | None = None
        self._texts: dict[str, str] = {}
        self._begin()

    def _begin(self) -> None:
        self._session = SessionFile(self._session.folder)
        init_bytes = len(self._session.init_segment)
        self._playlist = Playlist(self._session.spec, init_bytes, VIDEO_URL.format(tag=self.tag))
        self._read: Totals | None = None

    def text(self, kind: str) -> str:
        with self._lock:
            mark = self._session.change_marker()
            if mark != self._mark:
                self._texts.clear()
                if self._mark is not None and mark[0] != self._mark[0]:
                    self._begin()  # a new writer may have cut off what was read
                self._mark = mark
            if kind not in self._texts:
                self._texts[kind] = self._grown() if kind == "playlist" else self._captions(kind == "words")
            return self._texts[kind]

    def _captions(self, words: bool) -> str:
        return webvtt(self._session.transcript(), words)

    def _grown(self) -> str:
        records = self._session.read_since(self._read)
        self._read = records[-1][1]
        return str(self._playlist.extend(record for record, _ in records[1:]))


def faststart(facts: dict[str, Any], size: int, folder: Path) -> Path:
    """A progressive MP4 of the session's first `size` bytes in `folder`; the caller removes it.

    Raises NotFoundError where it is empty, InputError where it never was of this size, BusyError for one just reset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uuid.uuid4().hex
    session = _session(facts)
    export_faststart(session, path, size)
    if session.video_tag != facts["video_tag"]:
        path.unlink(missing_ok=True)
        raise BusyError(f"The session {session.session_id!r} was reset meanwhile.", "Ask again.")
    return path


def _session(facts: dict[str, Any]) -> SessionFile:
    return SessionFile(Path(facts["video_path"]).parent)
