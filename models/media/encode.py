"""Encodes one utterance, frames and speech, to fragments of MP4. Knows nothing of files, faces, HTTP or Ray.

Timelines. Video is constant-rate: frame k of a session starts at tick k × VIDEO_TIMESCALE / fps, across utterances.
Audio is one unbroken grid of AAC frames of 1024 samples. A fragment carries the AAC frames that start inside it, so the
two tracks part by less than one AAC frame at any fragment's end, and that difference never adds up.

Where utterances meet. An utterance starts at a video tick, which falls inside an AAC frame of the grid. If that frame
is still free, silence fills it up to the tick, and speech is placed to the sample. If the utterance before has used it,
the new speech gives up that many samples of its leading silence, and again stands exact. Only where neither the end of
the one nor the start of the other is silent, speech is late: by less than a video frame, constant within the utterance.

AAC transforms overlap by one frame, and each utterance has its own encoder, whose first (priming) packet is dropped:
speech that begins without any silence fades in over the first 1024 samples. Synthesised speech begins with more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from av.video.frame import PictureType

from models.errors import ConfigError
from models.media import mp4 as boxes
from models.media.frames import planes
from models.media.yuv import AnyFrame
from models.types import SUPPORTED_FPS, Float32, Fragment, UInt8

VIDEO_TIMESCALE = 90_000  # ticks a second: a whole number of them in a frame at 24, 25 and 30 fps
AAC_FRAME = 1024  # samples
AAC_RATES_HZ = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
SILENCE = 10 ** (-50 / 20)  # peak below which speech counts as silent: −50 dBFS
GLOBAL_HEADER = 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER: parameter sets stand in the init segment, not in the frames


@dataclass(frozen=True, slots=True)
class Clock:
    """Where a session ends: video ticks of 1 / VIDEO_TIMESCALE s, and audio samples."""

    video_ticks: int = 0
    audio_samples: int = 0


@dataclass(frozen=True, slots=True)
class MediaSpec:
    """How a session is coded. It is fixed for the life of a session file.

    width, height: px, even. crf: x264's constant quality, lower is better. The first fragment of an utterance is short,
    so that a viewer sees it early; later ones are longer, since each opens with an IDR frame. Raises ConfigError.
    """

    width: int
    height: int
    fps: int
    sample_rate_hz: int = 24_000
    crf: int = 20
    preset: str = "veryfast"  # 2 % more bits than `faster` in two thirds of its time
    fragment_frames: int = 12
    first_fragment_frames: int = 6
    threads: int = 1
    audio_bit_rate: int = 96_000

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2 or not (16 <= self.width <= 8192 and 16 <= self.height <= 8192):
            raise ConfigError(f"{self.width}×{self.height} px cannot be encoded.", "Use even sides of 16 to 8192 px.")
        if self.fps not in SUPPORTED_FPS:
            raise ConfigError(f"{self.fps} fps is not supported.", f"Use one of {SUPPORTED_FPS}.")
        if self.sample_rate_hz not in AAC_RATES_HZ:
            raise ConfigError(f"{self.sample_rate_hz} Hz is no AAC rate.", f"Use one of {AAC_RATES_HZ}.")
        if min(self.fragment_frames, self.first_fragment_frames) < 1:
            raise ConfigError("A fragment holds at least one frame.", "Raise fragment_frames, first_fragment_frames.")

    @classmethod
    def for_source(cls, width: int, height: int, fps: int, **options: int | str) -> MediaSpec:
        """The spec of a source of any size: `UtteranceEncoder.push` crops an odd row or column at its end."""
        return cls(width - width % 2, height - height % 2, fps, **options)  # type: ignore[arg-type]

    @property
    def format(self) -> str:
        """In words, what must stay the same for the life of a session; how well it is coded may change."""
        return f"{self.width}×{self.height} px at {self.fps} fps with sound at {self.sample_rate_hz} Hz"

    @property
    def frame_ticks(self) -> int:
        return VIDEO_TIMESCALE // self.fps

    def samples_at(self, video_ticks: int) -> int:
        """The audio sample that sounds when a video tick begins."""
        return round(Fraction(video_ticks * self.sample_rate_hz, VIDEO_TIMESCALE))


@lru_cache(maxsize=64)
def init_segment(spec: MediaSpec) -> bytes:
    """The ftyp + moov of every session of this spec. Raises ConfigError."""
    return _make_init(spec, _VideoTrack(spec).extradata, _AudioTrack(spec, Clock()).extradata)


@lru_cache(maxsize=64)
def codec_headers(spec: MediaSpec) -> tuple[bytes, bytes]:
    """What decoders need before the first sample: SPS and PPS (Annex B), and the AudioSpecificConfig."""
    return _VideoTrack(spec).extradata, _AudioTrack(spec, Clock()).extradata


@lru_cache(maxsize=64)
def silent_packet(spec: MediaSpec) -> bytes:
    """An AAC packet of silence between silence: the same bytes wherever it stands in a session of this spec."""
    track = _AudioTrack(spec, Clock())
    track.feed(np.zeros(8 * AAC_FRAME, np.float32))
    return track.take(8 * AAC_FRAME)[4]


def codecs(init: bytes) -> str:
    """What a browser's `MediaSource.isTypeSupported` asks for (RFC 6381), such as `avc1.64000c, mp4a.40.2`."""
    profile = init.index(b"avcC") + 5  # behind the box's kind and its version: profile, constraints, level
    return f"avc1.{init[profile : profile + 3].hex()}, mp4a.40.2"


def rebase(fragment: Fragment, video_zero: int, audio_zero: int) -> bytes:
    """The fragment's bytes with its decode times counted from `video_zero` ticks and `audio_zero` samples.

    A viewer who joins a session gets a timeline that starts at 0; `live_zero` of the first fragment gives the zeros.
    """
    return boxes.shift_decode_times(fragment.data, {boxes.VIDEO_TRACK: video_zero, boxes.AUDIO_TRACK: audio_zero})


def live_zero(first: Fragment) -> Clock:
    """The one instant, in ticks and in samples, at which the earlier track of a viewer's first fragment starts."""
    rate = Fraction(first.sample_rate_hz, first.video_timescale)  # samples a tick
    if not first.audio_duration or first.audio_start >= first.video_start * rate:
        return Clock(first.video_start, round(first.video_start * rate))
    return Clock(min(first.video_start, round(first.audio_start / rate)), first.audio_start)


class UtteranceEncoder:
    """Encodes one utterance from `start`, the clock of the session that it continues.

    Give speech as early as it is known: a fragment leaves only when the AAC frames inside it are coded, and AAC looks
    two frames ahead. Not thread-safe; its output is deterministic.
    """

    def __init__(self, spec: MediaSpec, start: Clock = Clock()) -> None:
        self.spec = spec
        self.clock = start  # where the fragments given out so far end
        self._video = _VideoTrack(spec)
        self._audio = _AudioTrack(spec, start)
        self.init_segment = _make_init(spec, self._video.extradata, self._audio.extradata)
        self._pending: deque[bytes] = deque()  # coded frames not yet in a fragment
        self._coded = 0  # frames
        self._next_key = 0  # the frame that opens the next fragment
        self._sizes: deque[int] = deque()  # frames of each fragment begun
        self._video_start = start.video_ticks
        self._done = False

    @property
    def audio_delay_s(self) -> float:
        """How late speech stands against its frames; 0 but where speech meets speech without any silence."""
        return self._audio.delay / self.spec.sample_rate_hz

    def push(self, frames: UInt8 | Iterable[AnyFrame], samples: Float32, last: bool = False) -> list[Fragment]:
        """Take RGB `(n, h, w, 3)`, or pictures, and mono `(m,)` in [−1, 1] at the spec's rate, n and m ≥ 0.

        Returns what is complete. frames may come one at a time: each is done with when the next is asked for, so all
        may be one buffer. `last` ends the utterance at its last frame: speech beyond it is cut, a lack is filled with
        silence. For speech of s seconds give ceil(s × fps) frames. Raises ConfigError for frames of another size.
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

    def _fit(self, frame: AnyFrame) -> None:
        """A frame may have an odd row or column more at its end. Raises ConfigError for one of another size."""
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
            self._sizes.append(self.spec.fragment_frames if self._coded else self.spec.first_fragment_frames)
            self._next_key += self._sizes[-1]
        self._pending.extend(self._video.encode(frame, key))
        self._coded += 1

    def _collect(self) -> list[Fragment]:
        fragments = []
        while self._sizes:
            count = min(self._sizes[0], len(self._pending)) if self._done else self._sizes[0]
            end = self.clock.video_ticks + count * self.spec.frame_ticks
            end_samples = self.spec.samples_at(end)
            if len(self._pending) < count or not (self._done or self._audio.coded_until >= end_samples):
                break
            self._sizes.popleft()
            fragments.append(self._fragment([self._pending.popleft() for _ in range(count)], end_samples))
        return fragments

    def _fragment(self, frames: list[bytes], end_samples: int) -> Fragment:
        video = boxes.Run(frames, self.clock.video_ticks, self.spec.frame_ticks)
        audio = boxes.Run(self._audio.take(end_samples), self.clock.audio_samples, AAC_FRAME)
        sequence = video.start // self.spec.frame_ticks + 1  # of the first frame: rises, and needs no memory
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


class _VideoTrack:
    """Frames → H.264 samples as MP4 stores them. No B-frames and no lookahead: each frame comes out at once."""

    def __init__(self, spec: MediaSpec) -> None:
        self._codec = av.CodecContext.create("libx264", "w")
        self._codec.width, self._codec.height, self._codec.pix_fmt = spec.width, spec.height, "yuv420p"
        self._codec.framerate = Fraction(spec.fps)
        self._codec.time_base = Fraction(1, spec.fps)
        self._codec.thread_count = spec.threads
        self._codec.flags |= GLOBAL_HEADER
        colour = "colorprim=bt709:transfer=bt709:colormatrix=bt709:fullrange=off"
        self._codec.options = {
            "preset": spec.preset,
            "tune": "zerolatency",
            "crf": str(spec.crf),
            "forced-idr": "1",
            "x264-params": f"keyint=infinite:scenecut=0:bframes=0:{colour}",
        }
        try:
            self._codec.open()
        except av.FFmpegError as error:
            raise ConfigError(f"x264 refuses its settings: {error}.", "Check preset, crf and size.") from error
        self.extradata = bytes(self._codec.extradata)
        self._frame = av.VideoFrame(spec.width, spec.height, "yuv420p")  # filled anew for each: x264 takes a copy
        self._picture = planes(self._frame)
        self._count = 0

    def encode(self, frame: AnyFrame, key: bool) -> list[bytes]:
        self._picture.copy_from(frame)
        self._frame.pts, self._count = self._count, self._count + 1
        self._frame.pict_type = PictureType.I if key else PictureType.NONE
        return [boxes.length_prefixed(bytes(packet)) for packet in self._codec.encode(self._frame)]

    def finish(self) -> list[bytes]:
        return [boxes.length_prefixed(bytes(packet)) for packet in self._codec.encode(None)]


class _AudioTrack:
    """Speech → AAC frames on the session's grid. Positions are samples of the session."""

    def __init__(self, spec: MediaSpec, start: Clock) -> None:
        self._spec = spec
        self._codec = av.CodecContext.create("aac", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = spec.sample_rate_hz, "mono", "fltp"
        self._codec.bit_rate = spec.audio_bit_rate
        self._codec.thread_count = 1
        self._codec.flags |= GLOBAL_HEADER
        self._codec.open()
        self.extradata = bytes(self._codec.extradata)
        self._grid_start = start.audio_samples
        lead = spec.samples_at(start.video_ticks) - start.audio_samples
        self._pending = np.zeros(max(0, lead), np.float32)  # silence up to the utterance's first frame
        self._taken = max(0, -lead)  # samples at the utterance's start that the grid has already given away
        self._loud_until = start.audio_samples  # behind the last sample that is not silent
        self._fed = start.audio_samples  # behind the last sample given to the codec
        self._packets: deque[bytes] = deque()
        self._first_packet = start.audio_samples  # where _packets[0] starts
        self.coded_until = start.audio_samples
        self.delay = 0

    def feed(self, samples: Float32) -> None:
        loud = np.flatnonzero(np.abs(samples) > SILENCE)
        if self._taken and len(samples):  # 1. leading silence makes room for what the utterance before has used
            cut = min(self._taken, int(loud[0]) if len(loud) else len(samples))
            samples, loud = samples[cut:], loud - cut
            self._taken -= cut
            if len(loud):
                self.delay, self._taken = self._taken, 0
        if len(loud):
            self._loud_until = self._fed + len(self._pending) + int(loud[-1]) + 1
        # 2. whole AAC frames go to the codec, the rest waits
        self._pending = np.concatenate([self._pending, np.clip(samples, -1, 1, dtype=np.float32)])
        whole = len(self._pending) // AAC_FRAME * AAC_FRAME
        for at in range(0, whole, AAC_FRAME):
            self._encode(self._pending[at : at + AAC_FRAME])
        self._pending = self._pending[whole:].copy()

    def finish(self, video_end: int) -> None:
        """End the grid where the video ends: the AAC frame across its end is used only if it carries sound."""
        whole = max(0, video_end - self._grid_start) // AAC_FRAME * AAC_FRAME
        end = self._grid_start + whole
        spare = max(0, AAC_FRAME - self._spec.samples_at(self._spec.frame_ticks))  # keeps any delay below a video frame
        if min(video_end, self._loud_until) - end > spare:
            end += AAC_FRAME
        missing = end - self._fed - len(self._pending)
        self._taken = 0
        self.feed(np.zeros(max(0, missing), np.float32))
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
            if packet.pts >= 0:  # the priming packet, at −1024, decodes to what lies before the utterance
                self._packets.append(bytes(packet))
                self.coded_until += AAC_FRAME

    def _drop_from(self, end: int) -> None:
        while self._packets and self.coded_until > end:
            self._packets.pop()
            self.coded_until -= AAC_FRAME


def _make_init(spec: MediaSpec, video_extradata: bytes, audio_extradata: bytes) -> bytes:
    video = boxes.VideoTrack(spec.width, spec.height, VIDEO_TIMESCALE, video_extradata)
    return boxes.init_segment(video, boxes.AudioTrack(spec.sample_rate_hz, spec.audio_bit_rate, audio_extradata))
