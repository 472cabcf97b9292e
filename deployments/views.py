"""Other views of a session's video, read from its folder: captions, a playlist, a download. Knows no stage, no HTTP."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from models.stitch.captions import webvtt
from models.stitch.session import SessionFile

VIDEO_URL = "video.mp4"  # beside the playlist


def captions(facts: dict[str, Any]) -> str:
    """WebVTT of a session; `facts` are what Stitch says of it. Raises SessionNotFound, CorruptError."""
    return webvtt(_session(facts).transcript())


def playlist(facts: dict[str, Any]) -> str:
    """An HLS playlist of a session. Raises SessionNotFound, CorruptError."""
    return _session(facts).hls_playlist(VIDEO_URL)


def faststart(facts: dict[str, Any], folder: Path) -> Path:
    """A progressive MP4 of the session in `folder`; the caller removes it. Raises NotFoundError where it is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uuid.uuid4().hex
    _session(facts).export_faststart(path)
    return path


def _session(facts: dict[str, Any]) -> SessionFile:
    return SessionFile(Path(facts["video_path"]).parent)
