"""A session's video as a progressive MP4. Nothing is coded anew."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import av

from models.errors import InputError, NotFoundError
from models.stitch.session import SessionFile


def export_faststart(session: SessionFile, path_out: Path, size: int | None = None) -> None:
    """Write a session as a progressive MP4, moov first.

    size: leave out what was added when the video already had so many bytes. Raises NotFoundError if it is empty,
    InputError where no fragment ends at `size`.
    """
    session.refresh()
    if not session.frames:
        raise NotFoundError(f"The session {session.session_id!r} has no video yet.", "Speak in it first.")
    if size not in (None, session.size) and all(r.get("at", 0) + r.get("bytes", 0) != size for r in session.records()):
        raise InputError(f"The video has never been {size} bytes long.", "Take the `size` that the session tells.")
    with session.path.open("rb") as file:
        remux_faststart(FilePrefix(file, size or session.size), Path(path_out))


def remux_faststart(fragmented: Any, path_out: Path) -> None:
    """Write a fragmented MP4 as a progressive one, its moov first; `path_out` appears whole or not at all."""
    part = path_out.with_name(f".{path_out.name}.{uuid.uuid4().hex}")
    try:
        with (
            av.open(fragmented) as given,
            av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as made,
        ):
            streams = {stream.index: made.add_stream_from_template(stream) for stream in given.streams}
            for packet in given.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    made.mux(packet)
        part.replace(path_out)
    finally:
        part.unlink(missing_ok=True)


class FilePrefix:
    """The first `size` bytes of a file that may be growing, as a file to be read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(*((self._size + offset, os.SEEK_SET) if whence == os.SEEK_END else (offset, whence)))

    def tell(self) -> int:
        return self._file.tell()
