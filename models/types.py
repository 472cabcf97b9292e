"""The data that passes between stages, in pipeline order: frozen dataclasses with numpy arrays.

Images are RGB uint8 `(n, h, w, 3)`; float images and BGR are never passed between stages. Arrays received from another
process are read-only views of shared memory: copy them before writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.errors import InputError

Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]
UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in frame px; x2 and y2 are exclusive
Span = tuple[int, int]  # rows or columns, from the first to one after the last

WHISPER_HZ = 16_000  # the sample rate of Whisper's log-mel spectrogram
CROP_PX = 256  # side of a face crop, which is the VAE's input and output
RESTORED_PX = 512  # side of a face crop after enhancement
LATENT_PX = CROP_PX // 8  # 32: the VAE downsamples by 8
WINDOW_STEPS = 2 * (2 + 1 + 2)  # 10 Whisper steps of 20 ms: at 25 fps two frames before, the frame itself, two after
WHISPER_STATES = 5  # hidden states of whisper-tiny: the embedding output and four layers
WINDOW_TOKENS = WINDOW_STEPS * WHISPER_STATES  # 50
WHISPER_WIDTH = 384  # d_model of whisper-tiny
SUPPORTED_FPS = (24, 25, 30)
READ_AROUND_PX = 4  # around the mask, when a face is resampled
JAW_PX = 24  # an opening jaw moves the mask's lower edge down by at most this (DROPS in models/stitch/jaw.py)
MAX_QUOTED_CHARS = 60  # of a text that a warning repeats


@dataclass(frozen=True, slots=True)
class Phoneme:
    """One phoneme of a segment. Times are seconds from the segment's first sample. symbol: IPA, or `_` for silence."""

    symbol: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Word:
    """One written word with its punctuation, and its start and end in seconds from the segment's first sample."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class SkippedText:
    """Passages of a text that cannot be spoken, for one reason.

    text: the beginning of the first passage. reason: the predicate of a sentence, such as "is a block of code".
    """

    text: str
    reason: str
    count: int = 1  # of passages

    @classmethod
    def of(cls, passage: str, reason: str) -> SkippedText:
        """One passage, on one line, cut to MAX_QUOTED_CHARS."""
        line = " ".join(passage[: 4 * MAX_QUOTED_CHARS].split())
        return cls(line if len(line) <= MAX_QUOTED_CHARS else f"{line[:MAX_QUOTED_CHARS]}…", reason)


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """The audio of one segment: a sentence, or a part of uploaded speech.

    samples: float32 mono `(n,)` in [-1, 1] at `sample_rate_hz`. text: what is spoken, empty if unknown. last: True for
    the final segment of an utterance. phonemes, words: empty if the engine does not give them. skipped: what cannot be
    spoken of the text, known by now and not in an earlier segment.
    """

    samples: Float32
    sample_rate_hz: int
    text: str = ""
    last: bool = False
    phonemes: tuple[Phoneme, ...] = ()
    words: tuple[Word, ...] = ()
    skipped: tuple[SkippedText, ...] = ()

    def __post_init__(self) -> None:
        assert self.samples.ndim == 1 and self.samples.dtype == np.float32, (self.samples.shape, self.samples.dtype)
        assert self.sample_rate_hz > 0, self.sample_rate_hz

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True, slots=True, eq=False)
class FeatureWindows:
    """One feature window per video frame: float16 `(n, 50, 384)`, 10 Whisper steps of 20 ms × 5 hidden states.

    fps: video frames per second. rest: the window for a closed, resting mouth, float16 `(50, 384)`, or None.
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
    """Generated faces: RGB uint8 `(n, 256, 256, 3)`, or `(n, 512, 512, 3)` after enhancement.

    first_frame: index of the first face's frame in the utterance. avatar_frames: int64 `(n,)`, the index of the avatar
    frame (landmarks, transform, mask) that each face belongs to; None if not known.
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
    """One fMP4 fragment (moof + mdat) with video and audio, decodable without earlier fragments if `key` is True.

    frames: number of video frames. video_start, video_duration: in ticks of 1 / `video_timescale` s. audio_start,
    audio_duration: in samples at `sample_rate_hz`. key: True if the first frame is an IDR frame, so that playback can
    start here. init: the ftyp + moov boxes that belong to the fragment, or empty.
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
    """The frames of an avatar: `source[k]` is RGB uint8 `(h, w, 3)`, read-only. Random access is fast."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8: ...


class RegionSource(Protocol):
    """The face region of each avatar frame: `source[k]` is uint8 `(512, 512)`, 0 or 255, over the parsed square."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8: ...


@dataclass(frozen=True, slots=True)
class CropWindow:
    """Rows and columns of the face crop (CROP_PX) that are decoded. Raises InputError."""

    rows: Span = (0, CROP_PX)
    columns: Span = (0, CROP_PX)

    def __post_init__(self) -> None:
        for start, stop in (self.rows, self.columns):
            if not 0 <= start < stop <= CROP_PX:
                raise InputError(
                    f"The window is rows {self.rows}, columns {self.columns}.", f"Choose spans in 0 to {CROP_PX}."
                )

    @classmethod
    def around(cls, masks: UInt8) -> CropWindow:
        """The smallest window with every pixel that masks `(n, 256, 256)` paste or that is read around them."""
        used: npt.NDArray[np.bool_] = np.any(masks, axis=0)
        if not used.any():
            return cls()
        lines = (np.flatnonzero(used.any(axis=axis)) for axis in (1, 0))
        (top, bottom), (left, right) = ((int(line[0]), int(line[-1]) + 1) for line in lines)
        return cls(
            (max(0, top - READ_AROUND_PX), min(CROP_PX, bottom + JAW_PX + READ_AROUND_PX)),
            (max(0, left - READ_AROUND_PX), min(CROP_PX, right + READ_AROUND_PX)),
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def cut(self, faces: Any) -> Any:
        """The window of face crops `(n, 256, 256, …)`."""
        return faces[:, slice(*self.rows), slice(*self.columns)]


@dataclass(frozen=True, slots=True, eq=False)
class CroppedDecoding:
    """What a KL VAE needs to decode only a window of an avatar's faces, and how exact that is.

    statistics: float32 `(n, norms, 2, groups)`, of mouths generated for each frame, see models/avatar/decoding.py and
    models/cropped_decoder.py. mean_error, p999_error: difference from the full decoder on other mouths, in grey levels:
    the mean, and what 99.9 % of the pixels that the mask pastes do not exceed in any channel.
    """

    window: CropWindow
    statistics: Float32
    mean_error: float
    p999_error: float


@dataclass(frozen=True, slots=True, eq=False)
class PreparedAvatar:
    """Everything that preparation computes for an avatar. Index k of every array belongs to frame k of n.

    version: changes whenever any stored byte changes. fps: frames per second. width, height: of the frames, px.
    transforms: float32 `(n, 2, 3)`, frame px → px of the 256 px crop, pixel centres at integers, as `cv2.warpAffine`
    takes them. landmarks: float32 `(n, 68, 2)`, frame px, iBUG order. masks: uint8 `(n, 256, 256)`, paste weight in
    crop space. has_face: bool `(n,)`; if False, the other arrays are interpolated at k and the frame is shown
    unchanged. latents: float16 `(n, 8, 32, 32)`, 4 channels of the masked face, then 4 of the reference; None if they
    were not loaded. frames: None if they were not loaded. vae_fingerprint: of the VAE that encoded the latents; another
    VAE cannot decode them. cuts: indices of the frames that begin a new scene of the source. decoding: loaded with the
    latents; None for a tiny VAE, which needs none, and in avatars that were prepared by an older version.

    Only for geometry `musetalk`: boxes: int32 `(n, 4)`, x1, y1, x2, y2 in frame px; the crop is the box resized to
    256 px, and `transforms` describe the same mapping. regions: output of the face parser; None: paste with `masks`.
    """

    avatar_id: str
    version: str
    fps: int
    width: int
    height: int
    transforms: Float32
    landmarks: Float32
    masks: UInt8
    has_face: npt.NDArray[np.bool_]
    latents: Float16 | None = None
    frames: FrameSource | None = None
    vae_fingerprint: str = ""
    boxes: Int32 | None = None
    regions: RegionSource | None = None
    cuts: tuple[int, ...] = ()
    decoding: CroppedDecoding | None = None

    def __len__(self) -> int:
        return len(self.transforms)

    def box(self, index: int) -> Box:
        """The box of frame `index` as Python integers. Only for geometry `musetalk`."""
        assert self.boxes is not None, self.avatar_id
        x1, y1, x2, y2 = self.boxes[index].tolist()
        return x1, y1, x2, y2
