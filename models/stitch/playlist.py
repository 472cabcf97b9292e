"""An HLS playlist over the byte ranges of a session's growing video (RFC 8216). Knows no files and no HTTP."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from models.media.encode import VIDEO_TIMESCALE, MediaSpec

SEGMENT_S = 2.0  # fragments are joined up to this: a player asks for every segment by itself


class Playlist:
    """An EVENT playlist: it only grows, whatever records are added.

    A segment is several fragments, up to SEGMENT_S, and never more than one utterance; the last one is named when it
    is whole. All have one init segment, so there is no discontinuity. A closed session's playlist has its end.
    """

    def __init__(self, spec: MediaSpec, init_bytes: int, url: str) -> None:
        """url: the video's, relative to the playlist's own."""
        longest_s = max(spec.fragment_frames, spec.first_fragment_frames) / spec.fps
        self._url = url
        self._lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-PLAYLIST-TYPE:EVENT", "#EXT-X-INDEPENDENT-SEGMENTS"]
        self._lines += [f"#EXT-X-TARGETDURATION:{math.ceil(SEGMENT_S + longest_s)}"]  # must never change
        self._lines += ["#EXT-X-MEDIA-SEQUENCE:0", f'#EXT-X-MAP:URI="{url}",BYTERANGE="{init_bytes}@0"']
        self._at = self._size = self._ticks = 0  # of the segment that is not named yet

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"

    def extend(self, records: Iterable[dict[str, Any]]) -> Playlist:
        """Add what the session's index says next."""
        for record in records:
            if record["type"] in ("start", "end", "close"):
                self._name()
            if record["type"] == "close":
                self._lines.append("#EXT-X-ENDLIST")
            if record["type"] != "fragment":
                continue
            self._at = self._at if self._size else record["at"]
            self._size, self._ticks = self._size + record["bytes"], self._ticks + record["video"][1]
            if self._ticks >= SEGMENT_S * VIDEO_TIMESCALE:
                self._name()
        return self

    def _name(self) -> None:
        if self._size:
            seconds = self._ticks / VIDEO_TIMESCALE
            self._lines += [f"#EXTINF:{seconds:.5f},", f"#EXT-X-BYTERANGE:{self._size}@{self._at}", self._url]
        self._size = self._ticks = 0
