"""Other forms of a session's video: a progressive MP4, an HLS playlist. Nothing is coded anew."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import av

from models.stitch.encode import VIDEO_TIMESCALE


def remux_faststart(fragmented: BinaryIO, path_out: Path) -> None:
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


def hls_playlist(records: Iterable[dict[str, Any]], init_bytes: int, url: str) -> str:
    """A playlist over the byte ranges of the session's video at `url` (RFC 8216; EVENT: it only grows)."""
    fragments = [record for record in records if record["type"] == "fragment"]
    durations = [record["video"][1] / VIDEO_TIMESCALE for record in fragments]
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-PLAYLIST-TYPE:EVENT", "#EXT-X-INDEPENDENT-SEGMENTS"]
    lines += [f"#EXT-X-TARGETDURATION:{max(1, round(max(durations, default=1)))}"]
    lines += [f'#EXT-X-MAP:URI="{url}",BYTERANGE="{init_bytes}@0"']
    for record, duration in zip(fragments, durations, strict=True):
        lines += [f"#EXTINF:{duration:.5f},", f"#EXT-X-BYTERANGE:{record['bytes']}@{record['at']}", url]
    return "\n".join(lines) + "\n"
