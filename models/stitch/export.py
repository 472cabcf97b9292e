"""Converts a session's fragmented video to a progressive MP4, without re-encoding."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import av

from models.errors import InputError, NotFoundError
from models.runtime.disk_full import writing_to
from models.stitch.session import SessionFile


def export_faststart(session: SessionFile, path_out: Path, size: int | None = None) -> None:
    """Write a session as a progressive MP4 with the moov box first.

    size: use only the first `size` bytes of the video.

    Raises: NotFoundError if the session is empty; InputError if no fragment ends at `size`; DiskFullError.
    """
    session.refresh()
    if not session.frames:
        raise NotFoundError(f"The session {session.session_id!r} has no video yet.", "Speak in the session first.")
    if size not in (None, session.size) and all(r.get("at", 0) + r.get("bytes", 0) != size for r in session.records()):
        raise InputError(
            f"No fragment of the video ends at byte {size}.",
            "Use a `size` that the server has reported.",
        )
    with session.path.open("rb") as file:
        remux_faststart(FilePrefix(file, size or session.size), Path(path_out))


def remux_faststart(fragmented: Any, path_out: Path) -> None:
    """Convert a fragmented MP4 to a progressive one with its moov first. `path_out` is replaced atomically."""
    part = path_out.with_name(f".{path_out.name}.{uuid.uuid4().hex}")
    try:
        with (
            writing_to(path_out),
            av.open(fragmented) as source,
            av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as target,
        ):
            streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
        part.replace(path_out)
    finally:
        part.unlink(missing_ok=True)


class FilePrefix:
    """A read-only file object over the first `size` bytes of a file that may be growing."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(*((self._size + offset, os.SEEK_SET) if whence == os.SEEK_END else (offset, whence)))

    def tell(self) -> int:
        return self._file.tell()
