"""An HLS playlist (RFC 8216) over the byte ranges of a session's growing video."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from models.media.encode import VIDEO_TIMESCALE, MediaSpec

SEGMENT_S = 2.0  # fragments are combined up to this length, to limit the number of requests


class Playlist:
    """An EVENT playlist, which only grows.

    A segment combines fragments of one utterance up to SEGMENT_S and is listed when it is complete. All segments share
    one init segment, so there are no discontinuities. A closed session's playlist has an end tag.
    """

    def __init__(self, spec: MediaSpec, init_bytes: int, url: str) -> None:
        """url: of the video, relative to the URL of the playlist."""
        longest_s = max(spec.fragment_frames, spec.first_fragment_frames) / spec.fps
        self._url = url
        self._lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-PLAYLIST-TYPE:EVENT", "#EXT-X-INDEPENDENT-SEGMENTS"]
        self._lines += [f"#EXT-X-TARGETDURATION:{math.ceil(SEGMENT_S + longest_s)}"]  # must be constant
        self._lines += ["#EXT-X-MEDIA-SEQUENCE:0", f'#EXT-X-MAP:URI="{url}",BYTERANGE="{init_bytes}@0"']
        self._at = self._size = self._ticks = 0  # byte offset, bytes and ticks of the unfinished segment

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"

    def extend(self, records: Iterable[dict[str, Any]]) -> Playlist:
        """Add the next records of the session's index."""
        for record in records:
            if record["type"] in ("start", "end", "close"):
                self._finish_segment()
            if record["type"] == "close":
                self._lines.append("#EXT-X-ENDLIST")
            if record["type"] != "fragment":
                continue
            self._at = self._at if self._size else record["at"]
            self._size, self._ticks = self._size + record["bytes"], self._ticks + record["video"][1]
            if self._ticks >= SEGMENT_S * VIDEO_TIMESCALE:
                self._finish_segment()
        return self

    def _finish_segment(self) -> None:
        if self._size:
            seconds = self._ticks / VIDEO_TIMESCALE
            self._lines += [f"#EXTINF:{seconds:.5f},", f"#EXT-X-BYTERANGE:{self._size}@{self._at}", self._url]
        self._size = self._ticks = 0
