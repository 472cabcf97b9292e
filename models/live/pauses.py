"""What a session showed between speech and speech, as fragments of its file, so that its replay does not leap.

Nothing is coded anew: idle motion, and the mouth's way back to rest, are taken as they were coded for the live picture.
Pure; knows no session, no clock of a wall.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from models.live.detour import Look, detour
from models.live.timeline import IdleGrid, IdleLoop, LiveFragment
from models.media import mp4 as boxes
from models.media.encode import AAC_FRAME, VIDEO_TIMESCALE, Clock, MediaSpec, init_segment, silent_packet
from models.types import Float32, Fragment

LEAST_KEPT = 1 / 3  # of what may be kept at an end, as it was shown; with the rest of it the head finds its way
DETOUR = 4  # times what may be kept at an end, more is kept at most where the head, at its own pace, would leap else


@dataclass(frozen=True, slots=True)
class RestFragment:
    """A piece of the mouth's way back to rest: H.264 samples, and how much of the generated mouth each frame has."""

    video: tuple[bytes, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PausePart:
    """A fragment of silence from `position` of the session's line on. weights: of the generated mouth, `(n,)`."""

    fragment: Fragment
    position: int
    weights: Float32

    @property
    def start(self) -> Clock:
        return Clock(self.fragment.video_start, self.fragment.audio_start)

    @property
    def end(self) -> Clock:
        made = self.fragment
        return Clock(made.video_start + made.video_duration, made.audio_start + made.audio_duration)


@dataclass(frozen=True, slots=True)
class Pause:
    """The time between an utterance and the one before it, or between two segments of it, as it was shown live.

    idle_path: the avatar's idle motion, as models.live.timeline.encode_idle made it. keep: frames that may be kept at
    each end of it; what lies between them is left out, and idle motion leads from the one end to the other
    (models/live/detour.py). rested: by position.
    """

    idle_path: Path
    keep: int
    rested: Mapping[int, RestFragment] = field(default_factory=dict)

    def parts(self, spec: MediaSpec, start: Clock, since: int, until: int, look: Look) -> Iterator[PausePart]:
        """From position `since` of the line, where the file's picture ends, to `until`, where it goes on.

        start: where both tracks go on. look: what the frame of a position looks like, an array of any one shape.
        Raises OSError, ValueError where the idle motion cannot be read.
        """
        if not self.keep or until <= since:
            return
        rests = list(self._rests(since, until))
        loop = _loop(self.idle_path)
        idle_from = loop.grid.ceil(rests[-1][0].next_position if rests else since)
        pieces = [
            *rests,
            *((piece, (0.0,) * piece.frames) for piece in self._idles(loop, idle_from, until, look)),
        ]
        for group in _groups(pieces, spec.fragment_frames):
            part = _part(group, spec, start)
            start = part.end
            yield part

    def _rests(self, since: int, until: int) -> Iterator[tuple[LiveFragment, tuple[float, ...]]]:
        while (rested := self.rested.get(since)) is not None and since + len(rested.video) <= until:
            end = since + len(rested.video)
            yield LiveFragment(since, end, rested.video), rested.weights
            since = end

    def _idles(self, loop: IdleLoop, start: int, until: int, look: Look) -> Iterator[LiveFragment]:
        """Whole pieces of the grid; where the pause is longer than twice `keep`, those of its ends and a way between.

        start: on the grid.
        """
        grid = loop.grid
        last = grid.floor(until)
        leave = join = last  # the positions at which the picture leaves its line, and where it goes on
        if until - start > 2 * self.keep:
            least = round(self.keep * LEAST_KEPT)
            leave, join = grid.ceil(start + least), grid.floor(last - least)
        wanted = 2 * self.keep - (leave - start) - (until - join)
        between: list[int] = []
        if leave < join:
            between = detour(grid, leave, join, wanted, wanted + DETOUR * self.keep, look)
        for position in (*_starts(grid, start, leave), *between, *_starts(grid, join, last)):
            yield loop.piece(position)


def _starts(grid: IdleGrid, first: int, end: int) -> Iterator[int]:
    """The pieces' starts from `first` to before `end`, both on the grid."""
    while first < end:
        yield first
        first += grid.frames_at(first)


@lru_cache(maxsize=4)
def _loop(path: Path) -> IdleLoop:
    return IdleLoop(path.read_bytes())


Weighed = tuple[LiveFragment, tuple[float, ...]]


def _groups(pieces: list[Weighed], longest: int) -> Iterator[list[Weighed]]:
    """Pieces that follow on each other, at most `longest` frames, and at least one piece, at a time."""
    group: list[Weighed] = []
    for piece, weights in pieces:
        full = sum(other.frames for other, _ in group) + piece.frames > longest
        if group and (full or group[-1][0].next_position != piece.position):
            yield group
            group = []
        group.append((piece, weights))
    if group:
        yield group


def _part(group: list[Weighed], spec: MediaSpec, start: Clock) -> PausePart:
    samples = list(itertools.chain.from_iterable(piece.video for piece, _ in group))
    video = boxes.Run(samples, start.video_ticks, spec.frame_ticks)
    # only AAC frames that end inside it: the one across its end is the next utterance's
    count = max(0, spec.samples_at(start.video_ticks + video.ticks) - start.audio_samples) // AAC_FRAME
    audio = boxes.Run([silent_packet(spec)] * count, start.audio_samples, AAC_FRAME)
    fragment = Fragment(
        data=boxes.fragment(start.video_ticks // spec.frame_ticks + 1, video, audio, key=True),
        frames=len(samples),
        video_start=video.start,
        video_duration=video.ticks,
        video_timescale=VIDEO_TIMESCALE,
        audio_start=audio.start,
        audio_duration=audio.ticks,
        sample_rate_hz=spec.sample_rate_hz,
        key=True,
        init=init_segment(spec),
    )
    weights = np.array(list(itertools.chain.from_iterable(found for _, found in group)), np.float32)
    return PausePart(fragment, group[0][0].position, weights)
