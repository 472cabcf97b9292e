"""The live timeline of a session: idle motion and speech as one endless stream. No time source, no network access.

The timeline counts video frames. Timeline position p shows avatar frame ping_pong(p), whether the avatar speaks or not.
So idle motion and speech join without a repeated or missing frame, if speech is rendered for the positions at which it
is shown. `LiveClock` says which position is due at a given time.

The stream consists of `LiveFragment`s of at most LIVE_FRAMES frames. Idle fragments are encoded once per avatar, as
closed GOPs, and are shared by all sessions and viewers. Speech fragments are cut out of the fragments of the session
file without re-encoding, so not all of them start with a keyframe. `ViewerTimeline` muxes live fragments for one
viewer: times start at 0 and have no gaps. Audio keeps a grid of 1024 samples. Where speech starts, its packets move to
the nearest slot of the viewer's grid, so the audio offset of a viewer is at most half an AAC frame (21 ms at 24 kHz).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.avatar.playback import period, ping_pong
from models.live.cues import Caption, CaptionTracker, Cue
from models.media import mp4 as boxes
from models.media.encode import (
    AAC_FRAME,
    VIDEO_TIMESCALE,
    Clock,
    MediaSpec,
    UtteranceEncoder,
    init_segment,
    silent_packet,
)
from models.media.yuv import AnyFrame, picture_at
from models.types import Fragment, FrameSource, UInt8

LIVE_FRAMES = 4  # frames per live fragment: 160 ms at 25 fps
SHORTEST_LOOP_S = 1.0  # shorter loops, such as that of a still image, are repeated up to this length


@dataclass(frozen=True, slots=True, eq=False)
class LiveFragment:
    """Up to LIVE_FRAMES encoded frames from timeline `position` on. The timeline continues at `next_position`.

    video: H.264 samples; the first is an IDR frame if `key`. audio: AAC packets, none for silence; the first starts
    `audio_offset` samples after the first frame. begins: it does not continue the previous live fragment of its
    utterance. A fragment whose `next_position` equals `position` delays the timeline: the avatar waits.
    """

    position: int
    next_position: int
    video: tuple[bytes, ...]
    audio: tuple[bytes, ...] = ()
    audio_offset: int = 0
    key: bool = True
    begins: bool = True
    utterance: int = 0  # number of the utterance, 0 if nobody speaks
    cues: tuple[Cue, ...] = ()  # sentences that sound in it, in seconds from its first frame

    @property
    def frames(self) -> int:
        return len(self.video)


@dataclass(frozen=True, slots=True)
class LiveClock:
    """Maps time to timeline positions: position 0 is due at `zero_s`, then one per frame. Seconds of a wall clock."""

    zero_s: float
    fps: int

    @classmethod
    def starting(cls, position: int, now_s: float, fps: int) -> LiveClock:
        """The clock on which `position` is due at `now_s`."""
        return cls(now_s - position / fps, fps)

    def position(self, now_s: float) -> int:
        """The position that is due at `now_s`."""
        return int((now_s - self.zero_s) * self.fps // 1)

    def time_of(self, position: int) -> float:
        """When `position` is due."""
        return self.zero_s + position / self.fps

    def delayed(self, frames: int) -> LiveClock:
        """The clock after the avatar has waited for `frames` frames."""
        return replace(self, zero_s=self.zero_s + frames / self.fps)


@dataclass(frozen=True, slots=True)
class IdleGrid:
    """Where idle fragments start: every LIVE_FRAMES frames from the start of the loop. The last one may be shorter."""

    loop: int  # frames in the loop

    @classmethod
    def of(cls, avatar_frames: int, fps: int) -> IdleGrid:
        """The grid of an avatar. A loop shorter than SHORTEST_LOOP_S is repeated."""
        once = period(avatar_frames)
        loop = once * -(-round(SHORTEST_LOOP_S * fps) // once)
        while loop % LIVE_FRAMES == 1:  # adjacent IDR frames need different idr_pic_id values
            loop += once
        return cls(loop)

    def floor(self, position: int) -> int:
        """The latest fragment start at or before `position`."""
        return position - position % self.loop % LIVE_FRAMES

    def ceil(self, position: int) -> int:
        """The first fragment start at or after `position`."""
        start = self.floor(position)
        return position if start == position else start + self.frames_at(start)

    def frames_at(self, start: int) -> int:
        """Number of frames of the idle fragment that starts at `start`, a position on the grid."""
        return min(LIVE_FRAMES, self.loop - start % self.loop)


class IdleLoop:
    """An avatar's encoded idle motion. Returns the fragment at any grid position without encoding."""

    def __init__(self, data: bytes) -> None:
        """data: the output of `encode_idle`. Raises ValueError for anything else."""
        starts = [(start - 8, end) for kind, start, end in boxes.children(data, 0, len(data)) if kind == b"moof"]
        if not starts:
            raise ValueError("the idle loop contains no fragment")
        ends = [start for start, _ in starts[1:]] + [len(data)]
        self._video: dict[int, tuple[bytes, ...]] = {}  # H.264 samples by start
        at = 0
        for (start, _), end in zip(starts, ends, strict=True):
            runs, key = boxes.read_fragment(data[start:end])
            if not key:
                raise ValueError("a fragment of the idle loop does not start with a keyframe")
            self._video[at] = tuple(runs[boxes.VIDEO_TRACK].samples)
            at += len(self._video[at])
        self.grid = IdleGrid(at)
        self.init = data[: starts[0][0]]
        self.bytes = len(data)
        if any(len(video) != self.grid.frames_at(start) for start, video in self._video.items()):
            raise ValueError("the lengths of the fragments in the idle loop do not match its grid")

    def fragment_at(self, position: int) -> LiveFragment:
        """The idle fragment that starts at `position`, which must be on the grid."""
        video = self._video[position % self.grid.loop]
        return LiveFragment(position, position + len(video), video)


def encode_idle(frames: FrameSource, spec: MediaSpec) -> bytes:
    """An avatar's whole loop, with silence, as a fragmented MP4: one closed GOP per start of its grid."""
    grid = IdleGrid.of(len(frames), spec.fps)
    encoder = UtteranceEncoder(_live_spec(spec))
    out = [encoder.init_segment]
    start = 0
    while start < grid.loop:
        count = grid.frames_at(start)
        indices = ping_pong(start, count, len(frames))
        images = [picture_at(frames, int(k)) for k in indices]
        start += count
        silence = np.zeros(spec.samples_at(count * spec.frame_ticks), np.float32)
        out += [fragment.data for fragment in encoder.push(images, silence, last=start == grid.loop)]
    return b"".join(out)


def encode_closed_gop(images: UInt8 | Iterable[AnyFrame], spec: MediaSpec) -> tuple[bytes, ...]:
    """H.264 samples of at most LIVE_FRAMES frames as one closed GOP. images: see `UtteranceEncoder.push`."""
    encoder = UtteranceEncoder(_live_spec(spec))
    (fragment,) = encoder.push(images, np.zeros(0, np.float32), last=True)
    runs, _ = boxes.read_fragment(fragment.data)
    return tuple(runs[boxes.VIDEO_TRACK].samples)


def _live_spec(spec: MediaSpec) -> MediaSpec:
    return replace(spec, first_fragment_frames=LIVE_FRAMES, fragment_frames=LIVE_FRAMES)


def split_fragment(
    fragment: Fragment, position: int, utterance: int, begins: bool, breaks: Collection[int] = ()
) -> list[LiveFragment]:
    """Split a fragment of the session file into live fragments, without re-encoding.

    position: timeline position of its first frame. Each live fragment gets the AAC packets that start inside it.
    begins: speech starts with this fragment. breaks: positions at which a live fragment should start, if at least two
    frames remain on each side.
    """
    runs, key = boxes.read_fragment(fragment.data)
    video = runs[boxes.VIDEO_TRACK]
    audio = runs.get(boxes.AUDIO_TRACK) or boxes.Run((), fragment.audio_start, AAC_FRAME)
    rate, scale = fragment.sample_rate_hz, fragment.video_timescale
    parts: list[LiveFragment] = []
    taken = 0
    edges = _edges(len(video.samples), {place - position for place in breaks})
    for at, until in itertools.pairwise(edges):
        samples = tuple(video.samples[at:until])
        start = round((video.start + at * video.sample_ticks) * rate / scale)
        end = round((video.start + (at + len(samples)) * video.sample_ticks) * rate / scale)
        last = until == len(video.samples)
        inside = len(audio.samples) - taken
        if not last:
            inside = min(inside, max(0, -(-(end - audio.start - taken * AAC_FRAME) // AAC_FRAME)))
        packets = tuple(audio.samples[taken : taken + inside])
        offset = audio.start + taken * AAC_FRAME - start
        taken += inside
        first, here = not parts, position + at
        parts.append(
            LiveFragment(
                here, here + len(samples), samples, packets, offset, key and first, begins and first, utterance
            )
        )
    return parts


def _edges(count: int, breaks: Collection[int]) -> list[int]:
    """The starts of the live fragments within `count` frames, and the end."""
    edges = [0]
    while edges[-1] < count:
        here = edges[-1]
        wanted = [b for b in breaks if here + 2 <= b <= min(here + LIVE_FRAMES, count - 2)]
        edges.append(min(wanted, default=min(here + LIVE_FRAMES, count)))
    return edges


def join_live_fragments(parts: Sequence[LiveFragment], fragment: Fragment, spec: MediaSpec) -> Fragment:
    """The start of `fragment`, up to the end of `parts`, which are the first results of `split_fragment`."""
    video = [sample for part in parts for sample in part.video]
    audio = [packet for part in parts for packet in part.audio]
    pictures = boxes.Run(video, fragment.video_start, spec.frame_ticks)
    sound = boxes.Run(audio, fragment.audio_start, AAC_FRAME)
    sequence = fragment.video_start // spec.frame_ticks + 1
    return replace(
        fragment,
        data=boxes.fragment(sequence, pictures, sound, key=fragment.key),
        frames=len(video),
        video_duration=pictures.ticks,
        audio_duration=sound.ticks,
    )


class ViewerTimeline:
    """Muxes live fragments for one viewer: both tracks start at 0 and have no gaps, even if fragments are skipped.

    The first fragment, and the first one after skipped fragments, must start with a keyframe.
    """

    def __init__(self, spec: MediaSpec) -> None:
        self.spec = spec
        self.clock = Clock()
        self.captions: tuple[Caption, ...] = ()  # captions that are new or changed with the last fragment
        self._tracker = CaptionTracker()
        self._silence = silent_packet(spec)
        self._sequence = itertools.count(1)

    @property
    def init(self) -> bytes:
        return init_segment(self.spec)

    @property
    def duration_s(self) -> float:
        return self.clock.video_ticks / (self.spec.fps * self.spec.frame_ticks)

    def put(self, fragment: LiveFragment, begins: bool = False) -> bytes:
        """moof + mdat of the fragment, after all previous ones. begins: fragments before it were skipped."""
        video, audio = self.schedule(fragment, begins)
        return boxes.fragment(next(self._sequence), video, audio, fragment.key)

    def schedule(self, fragment: LiveFragment, begins: bool = False) -> tuple[boxes.Run, boxes.Run]:
        """The fragment's video and audio with the times for this viewer. Call either this or `put`."""
        ticks = len(fragment.video) * self.spec.frame_ticks
        delay_s = ticks / VIDEO_TIMESCALE if fragment.next_position == fragment.position else 0.0
        self.captions = self._tracker.update(fragment.cues, fragment.utterance, self.duration_s, delay_s)
        start = self.clock.audio_samples
        packets = self._packets(fragment, begins or fragment.begins, self.clock.video_ticks + ticks)
        video = boxes.Run(fragment.video, self.clock.video_ticks, self.spec.frame_ticks)
        audio = boxes.Run(packets, start, AAC_FRAME)
        self.clock = Clock(video.start + video.ticks, audio.start + audio.ticks)
        return video, audio

    def _packets(self, fragment: LiveFragment, begins: bool, end_ticks: int) -> list[bytes]:
        """The fragment's packets, shifted by whole slots to their place; silence up to its end if it has none."""
        here = self.clock.audio_samples
        if not fragment.audio:
            missing = self.spec.samples_at(end_ticks) - here
            return [self._silence] * max(0, -(-missing // AAC_FRAME))
        packets = list(fragment.audio)
        late = here - self.spec.samples_at(self.clock.video_ticks) - fragment.audio_offset  # samples, < 0: early
        tolerance = AAC_FRAME // 2 if begins else AAC_FRAME  # within speech, only correct for skipped fragments
        while late < -tolerance:
            packets.insert(0, self._silence)
            late += AAC_FRAME
        while late > tolerance and packets:
            packets.pop(0)
            late -= AAC_FRAME
        return packets


def rest_steps(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(position, frames) of the fragments in which a mouth comes to rest, from `start` to `end`, two frames or more."""
    while start < end:
        count = end - start if end - start <= LIVE_FRAMES else LIVE_FRAMES - 1  # avoids a fragment of one frame
        yield start, count
        start += count


def fade_out_weights(count: int) -> list[float]:
    """Weights of the generated mouth over `count` frames that fade it out: smooth at both ends, below 1, the last 0."""
    steps = np.arange(1, count + 1) / count
    return [float(1 - step * step * (3 - 2 * step)) for step in steps]
