"""Encodes the frames and the speech of one utterance as fragments of MP4. No file access, no Ray imports.

Timelines. The video has a constant frame rate: frame k of a session starts at tick k × VIDEO_TIMESCALE / fps, across
all utterances. The audio is one continuous grid of AAC frames of 1024 samples. A fragment contains the AAC frames that
start inside it. So at the end of any fragment the two tracks differ by less than one AAC frame, and the difference does
not accumulate.

Joining utterances. An utterance starts at a video tick, which usually falls inside an AAC frame of the grid.
- If that AAC frame is still free, silence fills it up to the tick, and speech starts at the exact sample.
- If the previous utterance has used it, the same number of samples is removed from the leading silence of the new
  speech, which again starts at the exact sample.
- If neither the end of the previous utterance nor the start of the new one is silent, the new speech is late by less
  than one video frame. This delay is constant within the utterance.

AAC transforms overlap by one frame. Each utterance has its own encoder, and the first (priming) packet is dropped, so
speech that starts without silence fades in over the first 1024 samples. Synthesised speech starts with more silence.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np

from models.errors import ConfigError
from models.media import mp4 as boxes
from models.media.h264 import GLOBAL_HEADER, H264Encoder, parameter_sets
from models.media.spec import VIDEO_TIMESCALE, MediaSpec
from models.media.yuv import AnyFrame
from models.types import Float32, Fragment, UInt8

__all__ = [
    "AAC_FRAME",
    "VIDEO_TIMESCALE",
    "Clock",
    "MediaSpec",
    "UtteranceEncoder",
    "codec_headers",
    "codecs",
    "init_segment",
    "live_zero",
    "rebase",
    "silent_packet",
]

AAC_FRAME = 1024  # samples per AAC frame
# FFmpeg's default, twoloop, takes five times as long for speech and is no better: 33.6 dB of SNR against 34.0. Only a
# synthetic tone without the noise of a microphone (−60 dBFS) is worse with `fast`: 26 dB.
AAC_CODER = "fast"
SILENCE = 10 ** (-50 / 20)  # samples with a smaller absolute value are silence: −50 dBFS


@dataclass(frozen=True, slots=True)
class Clock:
    """A point in time on both tracks: video ticks of 1 / VIDEO_TIMESCALE s, and audio samples."""

    video_ticks: int = 0
    audio_samples: int = 0


@lru_cache(maxsize=64)
def init_segment(spec: MediaSpec) -> bytes:
    """The ftyp + moov of every session with this spec. Raises ConfigError."""
    video = boxes.VideoTrack(spec.width, spec.height, VIDEO_TIMESCALE, parameter_sets(spec))
    audio = boxes.AudioTrack(spec.sample_rate_hz, spec.audio_bit_rate, _AudioTrack(spec, Clock()).extradata)
    return boxes.init_segment(video, audio)


@lru_cache(maxsize=64)
def codec_headers(spec: MediaSpec) -> tuple[bytes, bytes]:
    """What decoders need before the first frame: SPS and PPS (Annex B), and the AudioSpecificConfig."""
    return parameter_sets(spec), _AudioTrack(spec, Clock()).extradata


@lru_cache(maxsize=64)
def silent_packet(spec: MediaSpec) -> bytes:
    """A steady-state AAC packet of silence. It is valid at any place in a session of this spec."""
    track = _AudioTrack(spec, Clock())
    track.feed(np.zeros(8 * AAC_FRAME, np.float32))
    track.encode_until(math.inf)
    return track.take(8 * AAC_FRAME)[4]


def codecs(init: bytes) -> str:
    """The codecs string for `MediaSource.isTypeSupported` (RFC 6381), such as `avc1.64000c, mp4a.40.2`."""
    profile = init.index(b"avcC") + 5  # after the box type and the version byte: profile, constraints, level
    return f"avc1.{init[profile : profile + 3].hex()}, mp4a.40.2"


def rebase(fragment: Fragment, video_zero: int, audio_zero: int) -> bytes:
    """The fragment's bytes with decode times relative to `video_zero` ticks and `audio_zero` samples.

    The timeline of a viewer who joins later must start at 0: `live_zero` of the first fragment gives both offsets.
    """
    return boxes.shift_decode_times(fragment.data, {boxes.VIDEO_TRACK: video_zero, boxes.AUDIO_TRACK: audio_zero})


def live_zero(first: Fragment) -> Clock:
    """The start of the earlier track of a viewer's first fragment, in ticks and in samples."""
    rate = Fraction(first.sample_rate_hz, first.video_timescale)  # samples per tick
    if not first.audio_duration or first.audio_start >= first.video_start * rate:
        return Clock(first.video_start, round(first.video_start * rate))
    return Clock(min(first.video_start, round(first.audio_start / rate)), first.audio_start)


class UtteranceEncoder:
    """Encodes one utterance, starting at `start`, the end of the session so far.

    Pass speech as early as possible: a fragment is returned only when all AAC frames inside it are encoded, and AAC
    looks ahead by two frames. Not thread-safe. Equal input gives equal bytes.
    """

    def __init__(self, spec: MediaSpec, start: Clock = Clock()) -> None:
        self.spec = spec
        self.clock = start  # end of the fragments returned so far
        self._video = H264Encoder(spec)
        self._audio = _AudioTrack(spec, start)
        self.init_segment = init_segment(spec)
        self._pending: deque[bytes] = deque()  # encoded frames that are not in a fragment yet
        self._coded = 0  # number of encoded frames
        self._next_key = self._size = 0  # index of the first frame of the next fragment; length of the latest one
        self._sizes: deque[int] = deque()  # number of frames of each fragment that has been started
        self._video_start = start.video_ticks
        self._done = False

    @property
    def audio_delay_s(self) -> float:
        """How late the speech is relative to the frames; 0 unless two utterances meet without any silence."""
        return self._audio.delay / self.spec.sample_rate_hz

    def push(self, frames: UInt8 | Iterable[AnyFrame], samples: Float32, last: bool = False) -> list[Fragment]:
        """Add frames and speech; return the fragments that are complete.

        frames: RGB `(n, h, w, 3)`, or an iterable of frames. A frame is encoded before the next one is requested, so an
        iterable may reuse one buffer. samples: mono `(m,)` in [−1, 1] at the spec's rate. n and m may be 0.
        last: the utterance ends at its last frame. Excess speech is cut, missing speech is filled with silence. For
        s seconds of speech pass ceil(s × fps) frames in total.

        Raises: ConfigError for frames of another size.
        """
        assert not self._done, "the utterance has ended"
        self._audio.feed(samples)
        for frame in frames:
            self._fit(frame)
            self._encode_frame(frame)
        if last:
            self._audio.finish(self.spec.samples_at(self._video_start + self._coded * self.spec.frame_ticks))
            self._done = True
            self._pending.extend(self._video.finish())
        return self._collect()

    def hear(self, samples: Float32) -> None:
        """Add speech ahead of its frames, and encode what the first fragment needs of it."""
        self._audio.feed(samples)
        first_ticks = self.spec.first_fragment_frames * self.spec.frame_ticks
        self._audio.encode_until(self.spec.samples_at(self._video_start + first_ticks))

    def _fit(self, frame: AnyFrame) -> None:
        """Check the size: one extra row or column at the end is allowed. Raises ConfigError."""
        height, width = self.spec.height, self.spec.width
        high, wide = frame.shape[:2]
        if not (0 <= high - height <= 1 and 0 <= wide - width <= 1):
            raise ConfigError(
                f"Frames of {wide}×{high} px do not fit a session of {width}×{height} px.",
                "Use a session of the avatar's size.",
            )

    def _encode_frame(self, frame: AnyFrame) -> None:
        key = self._coded == self._next_key
        if key:
            self._size = self.spec.next_fragment_frames(self._size)
            self._sizes.append(self._size)
            self._next_key += self._size
        self._pending.extend(self._video.encode(frame, key))
        self._coded += 1

    def _collect(self) -> list[Fragment]:
        fragments = []
        while self._sizes:
            count = min(self._sizes[0], len(self._pending)) if self._done else self._sizes[0]
            end = self.clock.video_ticks + count * self.spec.frame_ticks
            end_samples = self.spec.samples_at(end)
            if len(self._pending) < count or not (self._done or self._audio.encode_until(end_samples)):
                break
            self._sizes.popleft()
            fragments.append(self._fragment([self._pending.popleft() for _ in range(count)], end_samples))
        return fragments

    def _fragment(self, frames: list[bytes], end_samples: int) -> Fragment:
        video = boxes.Run(frames, self.clock.video_ticks, self.spec.frame_ticks)
        audio = boxes.Run(self._audio.take(end_samples), self.clock.audio_samples, AAC_FRAME)
        sequence = video.start // self.spec.frame_ticks + 1  # number of the first frame: increases without a counter
        self.clock = Clock(video.start + video.ticks, audio.start + audio.ticks)
        return Fragment(
            data=boxes.fragment(sequence, video, audio, key=True),
            frames=len(frames),
            video_start=video.start,
            video_duration=video.ticks,
            video_timescale=VIDEO_TIMESCALE,
            audio_start=audio.start,
            audio_duration=audio.ticks,
            sample_rate_hz=self.spec.sample_rate_hz,
            key=True,
            init=self.init_segment,
        )


class _AudioTrack:
    """Encodes speech as AAC frames on the grid of the session. Positions are samples from the session's start.

    It encodes what the next fragment needs: the first fragment cannot wait for the sound of a long sentence.
    """

    def __init__(self, spec: MediaSpec, start: Clock) -> None:
        self._spec = spec
        self._codec = av.CodecContext.create("aac", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = spec.sample_rate_hz, "mono", "fltp"
        self._codec.bit_rate = spec.audio_bit_rate
        self._codec.thread_count = 1
        self._codec.flags |= GLOBAL_HEADER
        self._codec.options = {"aac_coder": AAC_CODER}
        self._codec.open()
        self.extradata = bytes(self._codec.extradata)
        self._grid_start = start.audio_samples
        lead = spec.samples_at(start.video_ticks) - start.audio_samples
        self._pending = np.zeros(max(0, lead), np.float32)  # silence before the utterance's first frame
        self._taken = max(0, -lead)  # samples after the utterance's start that the previous utterance has used
        self._loud_until = start.audio_samples  # end of the last sample that is not silent
        self._fed = start.audio_samples  # end of the samples passed to the codec
        self._packets: deque[bytes] = deque()
        self._first_packet = start.audio_samples  # start of _packets[0]
        self.coded_until = start.audio_samples
        self.delay = 0

    def feed(self, samples: Float32) -> None:
        loud = np.flatnonzero(np.abs(samples) > SILENCE)
        if self._taken and len(samples):  # 1. drop leading silence in exchange for the samples already used
            cut = min(self._taken, int(loud[0]) if len(loud) else len(samples))
            samples, loud = samples[cut:], loud - cut
            self._taken -= cut
            if len(loud):
                self.delay, self._taken = self._taken, 0
        if len(loud):
            self._loud_until = self._fed + len(self._pending) + int(loud[-1]) + 1
        # 2. keep the samples until a fragment needs them
        self._pending = np.concatenate([self._pending, np.clip(samples, -1, 1, dtype=np.float32)])

    def encode_until(self, end: float) -> bool:
        """Encode whole AAC frames until all that start before `end` are coded; False: that needs more speech."""
        used = 0
        while self.coded_until < end and used + AAC_FRAME <= len(self._pending):
            self._encode(self._pending[used : used + AAC_FRAME])
            used += AAC_FRAME
        self._pending = self._pending[used:]
        return self.coded_until >= end

    def finish(self, video_end: int) -> None:
        """End the grid where the video ends. The AAC frame across that end is kept only if it contains sound."""
        whole = max(0, video_end - self._grid_start) // AAC_FRAME * AAC_FRAME
        end = self._grid_start + whole
        spare = max(0, AAC_FRAME - self._spec.samples_at(self._spec.frame_ticks))  # keeps the delay below a video frame
        if min(video_end, self._loud_until) - end > spare:
            end += AAC_FRAME
        missing = end - self._fed - len(self._pending)
        self._taken = 0
        self.feed(np.zeros(max(0, missing), np.float32))
        self.encode_until(math.inf)
        if len(self._pending):
            self._encode(np.concatenate([self._pending, np.zeros(AAC_FRAME - len(self._pending), np.float32)]))
        self._store(self._codec.encode(None))
        self._drop_from(end)

    def take(self, until: int) -> list[bytes]:
        """Remove and return the AAC frames that start before `until`."""
        count = min(len(self._packets), max(0, -(-(until - self._first_packet) // AAC_FRAME)))
        self._first_packet += count * AAC_FRAME
        return [self._packets.popleft() for _ in range(count)]

    def _encode(self, samples: Float32) -> None:
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")  # (1, 1024)
        frame.sample_rate = self._spec.sample_rate_hz
        frame.pts = self._fed - self._grid_start
        self._fed += AAC_FRAME
        self._store(self._codec.encode(frame))

    def _store(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if packet.pts >= 0:  # drop the priming packet, at −1024: it covers the time before the utterance
                self._packets.append(bytes(packet))
                self.coded_until += AAC_FRAME

    def _drop_from(self, end: int) -> None:
        while self._packets and self.coded_until > end:
            self._packets.pop()
            self.coded_until -= AAC_FRAME
