"""What passes between the stages, in the order in which it flows. Knows nothing of Ray, HTTP or models.

Images are RGB uint8 `(n, h, w, 3)`; float images and BGR never cross a boundary. Arrays received from another process
are read-only views of shared memory: a stage that writes makes its own copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]
UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole frame px; x2 and y2 are the first px outside

WHISPER_HZ = 16_000  # the sample rate of Whisper's log-mel spectrogram
CROP_PX = 256  # side of a face crop: the VAE's input and output
RESTORED_PX = 512  # side of a face crop after enhancement
LATENT_PX = CROP_PX // 8  # the VAE halves the side three times
WINDOW_STEPS = 2 * (2 + 1 + 2)  # Whisper steps (20 ms) around a frame at 25 fps: two frames before, itself, two after
WHISPER_STATES = 5  # hidden states of whisper-tiny: embedding output and four layers
WINDOW_TOKENS = WINDOW_STEPS * WHISPER_STATES  # 50
WHISPER_WIDTH = 384  # d_model of whisper-tiny
SUPPORTED_FPS = (24, 25, 30)


@dataclass(frozen=True, slots=True)
class Phoneme:
    """One sound of a segment, in seconds from the segment's first sample; `symbol` is IPA, `_` is silence."""

    symbol: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Word:
    """One word as it is written, with the marks at its ends, and when it is heard, in seconds."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """The sound of one segment (a sentence, or a stretch of given audio).

    samples: float32 mono `(n,)` in [-1, 1]. `last` marks the final segment of an utterance. `phonemes`, and `words`
    with times from the first sample on, are empty where the engine does not know them.
    """

    samples: Float32
    sample_rate_hz: int
    text: str = ""
    last: bool = False
    phonemes: tuple[Phoneme, ...] = ()
    words: tuple[Word, ...] = ()

    def __post_init__(self) -> None:
        assert self.samples.ndim == 1 and self.samples.dtype == np.float32, (self.samples.shape, self.samples.dtype)
        assert self.sample_rate_hz > 0, self.sample_rate_hz

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True, slots=True, eq=False)
class FeatureWindows:
    """Whisper states around each video frame: float16 `(n, 50, 384)`, ten 20 ms steps × five hidden states.

    rest: the window of a mouth at rest, `(50, 384)`, the same for all speech; None where the engine has none.
    """

    windows: Float16
    fps: int
    rest: Float16 | None = None

    def __post_init__(self) -> None:
        assert self.windows.shape[1:] == (WINDOW_TOKENS, WHISPER_WIDTH), self.windows.shape

    def __len__(self) -> int:
        return len(self.windows)


@dataclass(frozen=True, slots=True, eq=False)
class FaceCrops:
    """Generated faces: uint8 `(n, 256, 256, 3)`, 512 after enhancement. `first_frame` counts within the utterance.

    `avatar_frames` says which frame of the avatar each face belongs to, int64 `(n,)`: where its landmarks are found.
    """

    images: UInt8
    first_frame: int
    avatar_id: str
    avatar_frames: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        assert self.images.ndim == 4 and self.images.dtype == np.uint8, (self.images.shape, self.images.dtype)
        assert self.images.shape[1] == self.images.shape[2] and self.images.shape[3] == 3, self.images.shape
        assert self.avatar_frames is None or len(self.avatar_frames) == len(self.images), self.avatar_frames

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """One closed piece of fragmented MP4 (moof + mdat), picture and sound together.

    Times are in ticks of their own track: video ticks of 1 / `video_timescale` s, audio ticks of one sample. `key`
    tells that the first frame is an IDR frame: playback can start here. `init` is the ftyp + moov to play behind.
    """

    data: bytes
    frames: int
    video_start: int
    video_duration: int
    video_timescale: int
    audio_start: int
    audio_duration: int
    sample_rate_hz: int
    key: bool = True
    init: bytes = b""

    @property
    def start_s(self) -> float:
        return self.video_start / self.video_timescale

    @property
    def duration_s(self) -> float:
        return self.video_duration / self.video_timescale


class FrameSource(Protocol):
    """The frames of an avatar: `source[k]` is RGB uint8 `(h, w, 3)`, read-only, cheap in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8: ...


class RegionSource(Protocol):
    """What is pasted back, a frame each: `source[k]` is uint8 0/255 `(512, 512)`, over the square that was parsed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8: ...


@dataclass(frozen=True, slots=True, eq=False)
class PreparedAvatar:
    """All that is known of an avatar before a session. Slot k of every array belongs to frame k.

    transforms: float32 `(n, 2, 3)`, frame px → 256 px crop, in pixel-centre coordinates as `cv2.warpAffine` takes them.
    landmarks: float32 `(n, 68, 2)` in frame px (iBUG order). latents: float16 `(n, 8, 32, 32)`, masked first, then
    reference. masks: uint8 `(n, 256, 256)`, paste weight in crop space. has_face: bool `(n,)`; where False, the other
    slots are interpolated and the frame is played as it is. `latents` or `frames` is None where a stage did not ask.
    cuts: the frames that begin a new scene of the source.

    Of geometry `musetalk` alone: boxes: int32 `(n, 4)`, x1, y1, x2, y2 in whole px within the frame; its crop is the
    box stretched to 256 px, and `transforms` say the same. regions: what a face parser saw; without them `masks` weigh.
    """

    avatar_id: str
    version: str  # changes whenever any stored byte changes
    fps: int
    width: int
    height: int
    transforms: Float32
    landmarks: Float32
    masks: UInt8
    has_face: npt.NDArray[np.bool_]
    latents: Float16 | None = None
    frames: FrameSource | None = None
    vae_fingerprint: str = ""  # of the VAE that made the latents; another VAE cannot decode them
    boxes: Int32 | None = None
    regions: RegionSource | None = None
    cuts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.transforms)

    def box(self, index: int) -> Box:
        """The box of frame `index`, in Python's integers. Only of geometry `musetalk`."""
        assert self.boxes is not None, self.avatar_id
        x1, y1, x2, y2 = self.boxes[index].tolist()
        return x1, y1, x2, y2
