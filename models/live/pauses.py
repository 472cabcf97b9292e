"""The pauses between utterances of a live session, as fragments for its file, so that a replay shows no jump.

Nothing is re-encoded: idle motion and the mouth's fade to rest are used as they were encoded for the live stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from models.live.detour import Thumbnail, detour
from models.live.timeline import IdleGrid, IdleLoop, LiveFragment
from models.media import mp4 as boxes
from models.media.encode import AAC_FRAME, VIDEO_TIMESCALE, Clock, MediaSpec, init_segment, silent_packet
from models.types import Float32, Fragment

LEAST_KEPT = 1 / 3  # share of `keep` at each end that is kept as shown; the detour uses the rest
DETOUR = 4  # the detour may be longer than wanted by this many times `keep`, if a shorter one would show a jump


@dataclass(frozen=True, slots=True)
class RestFragment:
    """A part of the mouth's fade to rest: H.264 samples, and the weight of the generated mouth per frame."""

    video: tuple[bytes, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PausePart:
    """A silent fragment that starts at timeline `position`. weights: of the generated mouth per frame, `(n,)`."""

    fragment: Fragment
    position: int
    weights: Float32

    @property
    def start(self) -> Clock:
        return Clock(self.fragment.video_start, self.fragment.audio_start)

    @property
    def end(self) -> Clock:
        end = self.fragment
        return Clock(end.video_start + end.video_duration, end.audio_start + end.audio_duration)


@dataclass(frozen=True, slots=True)
class Pause:
    """The time between two utterances, or between two segments of one, as the live stream showed it.

    idle_path: the avatar's idle motion, made by models.live.timeline.encode_idle. keep: number of frames to keep at
    each end of the pause. The middle is left out; a detour of idle motion connects the ends (models/live/detour.py).
    rested: the mouth's fade to rest, by timeline position.
    """

    idle_path: Path
    keep: int
    rested: Mapping[int, RestFragment] = field(default_factory=dict)

    def parts(self, spec: MediaSpec, start: Clock, since: int, until: int, thumbnail: Thumbnail) -> Iterator[PausePart]:
        """The fragments from timeline position `since`, where the file's video ends, to `until`, where it continues.

        start: where both tracks continue. thumbnail: see `detour`.

        Raises: OSError, ValueError if the idle motion cannot be read.
        """
        if not self.keep or until <= since:
            return
        rests = list(self._rests(since, until))
        loop = _loop(self.idle_path)
        idle_from = loop.grid.ceil(rests[-1][0].next_position if rests else since)
        fragments = [
            *rests,
            *((idle, (0.0,) * idle.frames) for idle in self._idles(loop, idle_from, until, thumbnail)),
        ]
        for group in _groups(fragments, spec.fragment_frames):
            part = _part(group, spec, start)
            start = part.end
            yield part

    def _rests(self, since: int, until: int) -> Iterator[tuple[LiveFragment, tuple[float, ...]]]:
        while (rest := self.rested.get(since)) is not None and since + len(rest.video) <= until:
            end = since + len(rest.video)
            yield LiveFragment(since, end, rest.video), rest.weights
            since = end

    def _idles(self, loop: IdleLoop, start: int, until: int, thumbnail: Thumbnail) -> Iterator[LiveFragment]:
        """Whole idle fragments from `start`, which is on the grid, to the last grid position before `until`.

        A pause longer than twice `keep` is shortened: fragments of both ends, and a detour between them.
        """
        grid = loop.grid
        last = grid.floor(until)
        leave = join = last  # where the detour leaves the timeline, and where it joins it again
        if until - start > 2 * self.keep:
            least = round(self.keep * LEAST_KEPT)
            leave, join = grid.ceil(start + least), grid.floor(last - least)
        wanted = 2 * self.keep - (leave - start) - (until - join)
        between: list[int] = []
        if leave < join:
            between = detour(grid, leave, join, wanted, wanted + DETOUR * self.keep, thumbnail)
        for position in (*_starts(grid, start, leave), *between, *_starts(grid, join, last)):
            yield loop.fragment_at(position)


def _starts(grid: IdleGrid, first: int, end: int) -> Iterator[int]:
    """The fragment starts from `first` to before `end`, both on the grid."""
    while first < end:
        yield first
        first += grid.frames_at(first)


@lru_cache(maxsize=4)
def _loop(path: Path) -> IdleLoop:
    return IdleLoop(path.read_bytes())


Weighted = tuple[LiveFragment, tuple[float, ...]]


def _groups(fragments: list[Weighted], longest: int) -> Iterator[list[Weighted]]:
    """Groups of consecutive live fragments: at most `longest` frames each, but at least one fragment."""
    group: list[Weighted] = []
    for fragment, weights in fragments:
        full = sum(other.frames for other, _ in group) + fragment.frames > longest
        if group and (full or group[-1][0].next_position != fragment.position):
            yield group
            group = []
        group.append((fragment, weights))
    if group:
        yield group


def _part(group: list[Weighted], spec: MediaSpec, start: Clock) -> PausePart:
    samples = list(itertools.chain.from_iterable(live.video for live, _ in group))
    video = boxes.Run(samples, start.video_ticks, spec.frame_ticks)
    # only AAC frames that end inside it: the one across its end belongs to the next utterance
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
    weights = np.array(list(itertools.chain.from_iterable(part for _, part in group)), np.float32)
    return PausePart(fragment, group[0][0].position, weights)
