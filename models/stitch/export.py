"""Other forms of a session's video: a progressive MP4, an HLS playlist. Nothing is coded anew."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import av

from models.stitch.encode import VIDEO_TIMESCALE


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


class Head:
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


SEGMENT_S = 2.0  # fragments are joined up to this: a player asks for every segment by itself


def hls_playlist(records: Iterable[dict[str, Any]], init_bytes: int, url: str, longest_fragment_s: float) -> str:
    """A playlist over the byte ranges of the session's video at `url` (RFC 8216; EVENT: it only grows).

    A segment is several fragments, up to SEGMENT_S, and never more than one utterance; the last one is named when it
    is whole. A closed session's playlist has its end.
    """
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-PLAYLIST-TYPE:EVENT", "#EXT-X-INDEPENDENT-SEGMENTS"]
    lines += [f"#EXT-X-TARGETDURATION:{math.ceil(SEGMENT_S + longest_fragment_s)}"]  # must never change
    lines += [f'#EXT-X-MAP:URI="{url}",BYTERANGE="{init_bytes}@0"']
    at = size = ticks = 0
    closed = False

    def segment() -> None:
        nonlocal size, ticks
        if size:
            lines.extend([f"#EXTINF:{ticks / VIDEO_TIMESCALE:.5f},", f"#EXT-X-BYTERANGE:{size}@{at}", url])
        size = ticks = 0

    for record in records:
        closed |= record["type"] == "close"
        if record["type"] in ("start", "end", "close"):
            segment()
        if record["type"] != "fragment":
            continue
        at = at if size else record["at"]
        size, ticks = size + record["bytes"], ticks + record["video"][1]
        if ticks >= SEGMENT_S * VIDEO_TIMESCALE:
            segment()
    return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if closed else [])]) + "\n"
