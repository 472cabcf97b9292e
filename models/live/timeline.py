"""The live picture of a session: idle motion and speech as one endless stream. Pure: knows no time source, no network.

A session's live line is a count of video frames, its *position*: frame p of the line shows avatar frame ping_pong(p),
whether the avatar speaks or not. So idle motion and speech meet without a repeated or dropped frame wherever speech was
rendered for the positions at which it is shown. `LiveClock` says which position is due when.

The line is cut into *pieces* of at most LIVE_FRAMES frames. Idle pieces are coded once for an avatar, as closed groups
of pictures, and serve every session and viewer; speech pieces are cut out of the fragments of the session's file,
sample by sample, and need not begin with a key frame. `ViewerTimeline` muxes pieces for one viewer: times from 0, no
gap. Sound keeps its grid of 1024 samples; where speech begins, its packets are laid to the nearest slot of the viewer's
grid, so a viewer's sound stands within half an AAC frame (21 ms at 24 kHz) of the file's.
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

LIVE_FRAMES = 4  # of a live piece: 160 ms at 25 fps
SHORTEST_LOOP_S = 1.0  # a still picture's loop is repeated to this length


@dataclass(frozen=True, slots=True, eq=False)
class LiveFragment:
    """Coded samples of up to LIVE_FRAMES frames from `position` on; the line goes on at `next_position`.

    video: H.264 samples, the first an IDR frame where `key`. audio: AAC packets, the first of which starts
    `audio_offset` samples after the first frame; none is silence. begins: whether it follows on something else than
    the piece before it in its utterance. `next_position` is `position` for a hold: the head waits.
    """

    position: int
    next_position: int
    video: tuple[bytes, ...]
    audio: tuple[bytes, ...] = ()
    audio_offset: int = 0
    key: bool = True
    begins: bool = True
    utterance: int = 0  # 0: nobody speaks
    cues: tuple[Cue, ...] = ()  # sentences that are heard in it, in seconds from its first frame

    @property
    def frames(self) -> int:
        return len(self.video)


@dataclass(frozen=True, slots=True)
class LiveClock:
    """Which position is due when: position 0 at `zero_s`, one more each frame. Times are seconds of one wall clock."""

    zero_s: float
    fps: int

    @classmethod
    def starting(cls, position: int, now_s: float, fps: int) -> LiveClock:
        """The clock on which `position` is due now."""
        return cls(now_s - position / fps, fps)

    def position(self, now_s: float) -> int:
        return int((now_s - self.zero_s) * self.fps // 1)

    def time_of(self, position: int) -> float:
        return self.zero_s + position / self.fps

    def held(self, frames: int) -> LiveClock:
        """The clock after the head has waited for some frames."""
        return replace(self, zero_s=self.zero_s + frames / self.fps)


@dataclass(frozen=True, slots=True)
class IdleGrid:
    """Where idle pieces begin: every LIVE_FRAMES frames of the loop, and at its start; its last piece may be short."""

    loop: int  # frames

    @classmethod
    def of(cls, avatar_frames: int, fps: int) -> IdleGrid:
        """The grid of an avatar: its loop, repeated where it is shorter than SHORTEST_LOOP_S."""
        once = period(avatar_frames)
        loop = once * -(-round(SHORTEST_LOOP_S * fps) // once)
        while loop % LIVE_FRAMES == 1:  # two key frames in a row would need different ids
            loop += once
        return cls(loop)

    def floor(self, position: int) -> int:
        """The last piece's start that is not behind `position`."""
        return position - position % self.loop % LIVE_FRAMES

    def ceil(self, position: int) -> int:
        """The first piece's start that is not before `position`."""
        start = self.floor(position)
        return position if start == position else start + self.frames_at(start)

    def frames_at(self, start: int) -> int:
        """Frames of the idle piece that begins at `start`, a position of the grid."""
        return min(LIVE_FRAMES, self.loop - start % self.loop)


class IdleLoop:
    """An avatar's idle motion, coded: a piece at any position of the grid, without encoding anything."""

    def __init__(self, data: bytes) -> None:
        """data: what `encode_idle` made. Raises ValueError for anything else."""
        starts = [(start - 8, end) for kind, start, end in boxes.children(data, 0, len(data)) if kind == b"moof"]
        if not starts:
            raise ValueError("the idle loop holds no piece")
        ends = [start for start, _ in starts[1:]] + [len(data)]
        self._pieces: dict[int, tuple[bytes, ...]] = {}
        at = 0
        for (start, _), end in zip(starts, ends, strict=True):
            runs, key = boxes.read_fragment(data[start:end])
            if not key:
                raise ValueError("a piece of the idle loop does not begin with a key frame")
            self._pieces[at] = tuple(runs[boxes.VIDEO_TRACK].samples)
            at += len(self._pieces[at])
        self.grid = IdleGrid(at)
        self.init = data[: starts[0][0]]
        self.bytes = len(data)
        if any(len(video) != self.grid.frames_at(start) for start, video in self._pieces.items()):
            raise ValueError("the pieces of the idle loop have other lengths than its grid")

    def piece(self, position: int) -> LiveFragment:
        """The idle piece that begins at `position`, which lies on the grid."""
        video = self._pieces[position % self.grid.loop]
        return LiveFragment(position, position + len(video), video)


def encode_idle(frames: FrameSource, spec: MediaSpec) -> bytes:
    """An avatar's whole loop as a fragmented MP4 of closed pieces with silence, one for each start of its grid."""
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
    """H.264 samples of at most LIVE_FRAMES frames, see `UtteranceEncoder.push`, as one closed group of pictures."""
    encoder = UtteranceEncoder(_live_spec(spec))
    (fragment,) = encoder.push(images, np.zeros(0, np.float32), last=True)
    runs, _ = boxes.read_fragment(fragment.data)
    return tuple(runs[boxes.VIDEO_TRACK].samples)


def _live_spec(spec: MediaSpec) -> MediaSpec:
    return replace(spec, first_fragment_frames=LIVE_FRAMES, fragment_frames=LIVE_FRAMES)


def split_fragment(
    fragment: Fragment, position: int, utterance: int, begins: bool, breaks: Collection[int] = ()
) -> list[LiveFragment]:
    """The pieces of a file's fragment whose first frame stands at `position` of the line; nothing is coded anew.

    Each gets the AAC packets that start inside it. begins: whether speech begins with it. breaks: positions at which a
    piece is to begin, where that leaves two frames to either side.
    """
    runs, key = boxes.read_fragment(fragment.data)
    video = runs[boxes.VIDEO_TRACK]
    audio = runs.get(boxes.AUDIO_TRACK) or boxes.Run((), fragment.audio_start, AAC_FRAME)
    rate, scale = fragment.sample_rate_hz, fragment.video_timescale
    pieces: list[LiveFragment] = []
    taken = 0
    edges = _edges(len(video.samples), {place - position for place in breaks})
    for at, behind in itertools.pairwise(edges):
        samples = tuple(video.samples[at:behind])
        start = round((video.start + at * video.sample_ticks) * rate / scale)
        end = round((video.start + (at + len(samples)) * video.sample_ticks) * rate / scale)
        last = behind == len(video.samples)
        inside = len(audio.samples) - taken
        if not last:
            inside = min(inside, max(0, -(-(end - audio.start - taken * AAC_FRAME) // AAC_FRAME)))
        packets = tuple(audio.samples[taken : taken + inside])
        offset = audio.start + taken * AAC_FRAME - start
        taken += inside
        first = not pieces
        here = position + at
        pieces.append(
            LiveFragment(
                here, here + len(samples), samples, packets, offset, key and first, begins and first, utterance
            )
        )
    return pieces


def _edges(count: int, breaks: Collection[int]) -> list[int]:
    """Where pieces of `count` frames begin, and their end."""
    edges = [0]
    while edges[-1] < count:
        here = edges[-1]
        wanted = [b for b in breaks if here + 2 <= b <= min(here + LIVE_FRAMES, count - 2)]
        edges.append(min(wanted, default=min(here + LIVE_FRAMES, count)))
    return edges


def join_live_fragments(pieces: Sequence[LiveFragment], fragment: Fragment, spec: MediaSpec) -> Fragment:
    """The fragment that ends with the last of `pieces`, the first ones that `split_fragment` made of `fragment`."""
    video = [sample for piece in pieces for sample in piece.video]
    audio = [packet for piece in pieces for packet in piece.audio]
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
    """Muxes pieces for one viewer: both tracks start at 0 and never leave a gap, whatever pieces are left out.

    The first piece must begin with a key frame, and so must the first after some were left out.
    """

    def __init__(self, spec: MediaSpec) -> None:
        self.spec = spec
        self.clock = Clock()
        self.captions: tuple[Caption, ...] = ()  # what became known of sentences with the last piece
        self._captions = CaptionTracker()
        self._silence = silent_packet(spec)
        self._sequence = itertools.count(1)

    @property
    def init(self) -> bytes:
        return init_segment(self.spec)

    @property
    def duration_s(self) -> float:
        return self.clock.video_ticks / (self.spec.fps * self.spec.frame_ticks)

    def put(self, piece: LiveFragment, begins: bool = False) -> bytes:
        """moof + mdat of the piece, behind all that was put before. begins: pieces before it were left out."""
        video, audio = self.schedule(piece, begins)
        return boxes.fragment(next(self._sequence), video, audio, piece.key)

    def schedule(self, piece: LiveFragment, begins: bool = False) -> tuple[boxes.Run, boxes.Run]:
        """The piece's pictures and sound with their times for this viewer; in place of `put`."""
        ticks = len(piece.video) * self.spec.frame_ticks
        held_s = ticks / VIDEO_TIMESCALE if piece.next_position == piece.position else 0.0
        self.captions = self._captions.take(piece.cues, piece.utterance, self.duration_s, held_s)
        start = self.clock.audio_samples
        packets = self._packets(piece, begins or piece.begins, self.clock.video_ticks + ticks)
        video = boxes.Run(piece.video, self.clock.video_ticks, self.spec.frame_ticks)
        audio = boxes.Run(packets, start, AAC_FRAME)
        self.clock = Clock(video.start + video.ticks, audio.start + audio.ticks)
        return video, audio

    def _packets(self, piece: LiveFragment, begins: bool, end_ticks: int) -> list[bytes]:
        """The piece's own packets, shifted by whole slots to where they belong; silence up to its end without any."""
        here = self.clock.audio_samples
        if not piece.audio:
            missing = self.spec.samples_at(end_ticks) - here
            return [self._silence] * max(0, -(-missing // AAC_FRAME))
        packets = list(piece.audio)
        late = here - self.spec.samples_at(self.clock.video_ticks) - piece.audio_offset  # samples, < 0: early
        tolerance = AAC_FRAME // 2 if begins else AAC_FRAME  # within speech only what was lost is mended
        while late < -tolerance:
            packets.insert(0, self._silence)
            late += AAC_FRAME
        while late > tolerance and packets:
            packets.pop(0)
            late -= AAC_FRAME
        return packets


def rest_steps(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Positions and lengths of the pieces in which a mouth comes to rest from `start` to `end`, two frames or more."""
    while start < end:
        count = end - start if end - start <= LIVE_FRAMES else LIVE_FRAMES - 1  # never a piece of one frame
        yield start, count
        start += count


def fade_out_weights(count: int) -> list[float]:
    """Weights of `count` frames that take a mouth from speech to rest: smooth at both ends, never quite 1, last 0."""
    steps = np.arange(1, count + 1) / count
    return [float(1 - step * step * (3 - 2 * step)) for step in steps]
