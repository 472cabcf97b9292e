"""How a session is encoded: picture, sound, fragments, and the encoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from models.errors import ConfigError
from models.types import SUPPORTED_FPS

VIDEO_TIMESCALE = 90_000  # ticks per second: divisible by 24, 25 and 30 fps
AAC_RATES_HZ = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
X264 = "libx264"


def growing(previous: int, first: int, largest: int) -> int:
    """The number of frames after `previous`, in the sequence first, 2 · first, 3 · first … largest; `first` after 0.

    Chunks and fragments grow so. The first one is short, so that the video starts early. A player that starts with it
    has few frames, so the next one is not much longer. Long ones cost less: each fragment begins with an IDR frame.
    """
    return min(previous + first, max(first, largest)) if previous else first


@dataclass(frozen=True, slots=True)
class MediaSpec:
    """How a session is encoded. Fixed for the life of a session file.

    width, height: even, px. crf: x264's constant quality, lower is better. first_fragment_frames, fragment_frames: of
    the first fragment of an utterance and of the largest, see `growing`.

    Raises: ConfigError for a size, frame rate or sample rate that is not supported.
    """

    width: int
    height: int
    fps: int
    sample_rate_hz: int = 24_000
    crf: int = 20
    preset: str = "superfast"  # about half the time of `veryfast` for about 10 % more bits, see models.media.h264
    fragment_frames: int = 12
    first_fragment_frames: int = 6
    threads: int = 1
    audio_bit_rate: int = 96_000
    encoder: str = X264
    parameter_sets: str = ""  # of a graphics card's encoder: SPS and PPS in Annex B form, hexadecimal

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2 or not (16 <= self.width <= 8192 and 16 <= self.height <= 8192):
            raise ConfigError(f"{self.width}×{self.height} px cannot be encoded.", "Use even sides of 16 to 8192 px.")
        if self.fps not in SUPPORTED_FPS:
            raise ConfigError(f"{self.fps} fps is not supported.", f"Use one of {SUPPORTED_FPS}.")
        if self.sample_rate_hz not in AAC_RATES_HZ:
            raise ConfigError(f"{self.sample_rate_hz} Hz is not an AAC sample rate.", f"Use one of {AAC_RATES_HZ}.")
        if min(self.fragment_frames, self.first_fragment_frames) < 1:
            raise ConfigError(
                "A fragment must hold at least one frame.",
                "Set fragment_frames and first_fragment_frames to at least 1.",
            )

    @classmethod
    def for_source(cls, width: int, height: int, fps: int, **options: int | str) -> MediaSpec:
        """The spec for a source of any size. `UtteranceEncoder.push` crops the last row or column of an odd side."""
        return cls(width - width % 2, height - height % 2, fps, **options)  # type: ignore[arg-type]

    @property
    def format(self) -> str:
        """The properties that must not change during a session, as text. Quality settings may change."""
        return f"{self.width}×{self.height} px at {self.fps} fps with sound at {self.sample_rate_hz} Hz"

    def stored(self) -> dict[str, Any]:
        """The fields as files keep them. Those of x264 are as in files that older versions wrote and compare by."""
        omitted = {"encoder", "parameter_sets"} if self.encoder == X264 else set()
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in omitted}

    def next_fragment_frames(self, previous: int) -> int:
        """The length of the fragment after one of `previous` frames; of an utterance's first one after 0."""
        return growing(previous, self.first_fragment_frames, self.fragment_frames)

    @property
    def frame_ticks(self) -> int:
        return VIDEO_TIMESCALE // self.fps

    def samples_at(self, video_ticks: int) -> int:
        """The number of the audio sample that plays at a video tick."""
        return round(Fraction(video_ticks * self.sample_rate_hz, VIDEO_TIMESCALE))
