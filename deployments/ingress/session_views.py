"""Other forms of a session's video, read from its folder: captions, an HLS playlist, a download."""

from __future__ import annotations

import re
import threading
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cachetools import LRUCache

from models.errors import BusyError
from models.stitch.captions import webvtt
from models.stitch.export import export_faststart
from models.stitch.index import Totals
from models.stitch.playlist import Playlist
from models.stitch.session import SessionFile

VIDEO_URL = "video.mp4?tag={tag}"  # relative to the playlist; after a reset, requests with the old tag get 404
MAX_VIEWS = 256  # sessions


def with_token(playlist: str, token: str) -> str:
    """The playlist, with a token (security/auth.py) added to its URLs."""
    return re.sub(r"video\.mp4\?[^\"\n]+", lambda url: f"{url[0]}&token={quote(token, safe='')}", playlist)


class SessionViews:
    """Captions and playlists of sessions, made again only after something was written. Thread-safe.

    `facts` are Stitch's description of the session. A request for an unchanged session costs two stat calls; for one
    that grew, only the new records are read. Raises SessionNotFound, CorruptError.
    """

    def __init__(self) -> None:
        self._views: LRUCache[str, _View] = LRUCache(MAX_VIEWS)
        self._lock = threading.Lock()

    def captions(self, facts: dict[str, Any], words: bool = False) -> str:
        """WebVTT. words: with a timestamp before each word whose time is known."""
        return self._view_of(facts).text("words" if words else "captions")

    def playlist(self, facts: dict[str, Any]) -> str:
        return self._view_of(facts).text("playlist")

    def _view_of(self, facts: dict[str, Any]) -> _View:
        path = facts["video_path"]
        with self._lock:
            view = self._views.get(path)
            if view is None or view.tag != facts["video_tag"]:
                view = self._views[path] = _View(_session(facts), facts["video_tag"])
        return view


class _View:
    """The texts of one session, until its reset."""

    def __init__(self, session: SessionFile, tag: str) -> None:
        self.tag = tag
        self._session = session
        self._lock = threading.Lock()
        self._mark: tuple[int, int, int] | None = None
        self._texts: dict[str, str] = {}
        self._start_over()

    def _start_over(self) -> None:
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
                    self._start_over()  # a new writer may have truncated what was read
                self._mark = mark
            if kind not in self._texts:
                self._texts[kind] = self._extend_playlist() if kind == "playlist" else self._captions(kind == "words")
            return self._texts[kind]

    def _captions(self, words: bool) -> str:
        return webvtt(self._session.transcript(), words)

    def _extend_playlist(self) -> str:
        records = self._session.read_since(self._read)
        self._read = records[-1][1]
        return str(self._playlist.extend(record for record, _ in records[1:]))


def export_download(facts: dict[str, Any], size: int, folder: Path) -> Path:
    """Write the first `size` bytes of a session as a progressive MP4 in `folder`. The caller deletes the file.

    Raises NotFoundError for an empty session, InputError if it never had this size, BusyError if it was just reset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uuid.uuid4().hex
    session = _session(facts)
    export_faststart(session, path, size)
    if session.video_tag != facts["video_tag"]:
        path.unlink(missing_ok=True)
        raise BusyError(f"The session {session.session_id!r} was reset during the export.", "Send the request again.")
    return path


def _session(facts: dict[str, Any]) -> SessionFile:
    return SessionFile(Path(facts["video_path"]).parent)
