"""Which part of an avatar's faces is decoded: all of it, or the window that is pasted (models/cropped_decoder.py).

The cropped decoder of a KL VAE uses group statistics of the same frame, averaged over MOUTHS that the UNet generates
for it. Another mouth has slightly other ones, so preparation measures the difference from the full decoder. Statistics
of the avatar's own face would be worse where generated skin differs from the video's: training/kl_decoder.py compares
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from models.avatar.crop_geometry import face_crop
from models.errors import ConfigError
from models.runtime.gpu_memory import compute_in_parts
from models.types import (
    WHISPER_HZ,
    CroppedDecoding,
    CropWindow,
    Float16,
    Float32,
    Int32,
    PreparedAvatar,
    UInt8,
)
from models.weights.checksums import EMBEDDED

if TYPE_CHECKING:
    import torch

DecodeSetting = Literal["auto", "full", "cropped"]
# latents (n, 8, 32, 32), masks (u, 256, 256), mask_index (n,), has_face (n,), fps, progress (done, total)
MeasureDecoding = Callable[
    [Float16, UInt8, Int32, npt.NDArray[np.bool_], int, Callable[[int, int], None]], CroppedDecoding
]

MAX_MEAN_ERROR, MAX_P999_ERROR = 0.5, 4.0  # grey levels: more is not used unasked
TEXT = "Good morning, and welcome to the programme. Five purple elephants moved past the farm while we watched."
MOUTHS = 2  # generated mouths, of the first half of TEXT, whose statistics are averaged
SAMPLES = 32  # generated mouths, of the second half, that are compared; spread over the avatar's frames
BATCH = 8  # faces in one call of the decoder


def choose_decoder(setting: DecodeSetting, avatar: PreparedAvatar, tiny: bool) -> tuple[CropWindow | None, str]:
    """The window to decode, None for the whole face, and a sentence that says why.

    setting: `decode` of LipSync. avatar: with its latents. tiny: the decoder is a tiny VAE's. Raises ConfigError:
    `cropped` is set, but the avatar has no statistics.
    """
    known, name = avatar.decoding, avatar.avatar_id
    if setting == "full":
        return None, "full, as `decode` says"
    if avatar.boxes is not None:
        return None, "full: geometry `musetalk` pastes up to the edges of the crop"
    if tiny:
        return CropWindow.around(avatar.masks), "cropped: exact with a tiny VAE"
    if known is None and setting == "cropped":
        raise ConfigError(
            f"The avatar {name!r} has no statistics for the cropped decoder.",
            f"Prepare it again: warmtalk prepare VIDEO --avatar-id {name} --force. Or set decode: auto or full.",
        )
    if known is None:
        return None, "full: the avatar has no statistics for the cropped decoder; prepare it again"
    error = f"differs by {known.mean_error:.2f} grey levels on average, 99.9 % of pixels by at most "
    error += f"{known.p999_error:.0f}"
    if setting == "auto" and (known.mean_error > MAX_MEAN_ERROR or known.p999_error > MAX_P999_ERROR):
        return None, f"full: the cropped one {error}; the limits are {MAX_MEAN_ERROR:g} and {MAX_P999_ERROR:g}"
    return known.window, f"cropped: {error}"


def own_faces(avatar: PreparedAvatar, indices: Sequence[int] | None = None) -> UInt8:
    """The avatar's own face crops as preparation encoded them, RGB uint8 `(n, 256, 256, 3)`.

    avatar: with its frames. indices: of the frames; None: all.
    """
    frames = avatar.frames
    assert frames is not None, avatar.avatar_id
    chosen = range(len(avatar)) if indices is None else indices
    boxed = avatar.boxes is not None
    return np.stack([face_crop(frames[k], avatar.transforms[k], avatar.box(k) if boxed else None) for k in chosen])


def speech_windows(text: str, fps: int = 25, device: str = "cpu") -> torch.Tensor:
    """Feature windows `(n, 50, 384)` of `text` in the default voice, by the embedded Whisper."""
    from models.features import WhisperFeatures
    from models.speech.audio import resample
    from models.tts.hibari import HibariTTS

    spoken = [resample(speech.samples, speech.sample_rate_hz, WHISPER_HZ) for speech in HibariTTS.load().speak(text)]
    return WhisperFeatures.load(EMBEDDED / "whisper", device).windows_in_context(np.concatenate(spoken), fps)


@cache
def _mouths(fps: int) -> tuple[Float16, Float16]:
    """The windows of MOUTHS and of SAMPLES mouths, `(m, 50, 384)` each."""
    windows: Float16 = speech_windows(TEXT, fps).numpy().astype(np.float16)
    half = len(windows) // 2
    return windows[spread(half, MOUTHS)], windows[half:][spread(len(windows) - half, SAMPLES)]


def spread(count: int, number: int) -> npt.NDArray[np.int64]:
    """The middles of `number` equal parts of `count` items, as indices."""
    return ((np.arange(number) + 0.5) * count / number).astype(np.int64)


def measure_decoding(
    model: Any,
    latents: Float16,
    masks: UInt8,
    mask_index: Int32,
    has_face: npt.NDArray[np.bool_],
    fps: int,
    progress: Callable[[int, int], None],
) -> CroppedDecoding:
    """The statistics of n frames, and the error of the cropped decoder on SAMPLES mouths of the same avatar.

    model: a MuseTalk engine: its `vae`, an AutoencoderKL, and `predict`. The other arguments: see MeasureDecoding.
    """
    import torch

    from models.cropped_decoder import CroppedDecoder, decoder_statistics
    from models.musetalk import Decoder

    vae, window, n = model.vae, CropWindow.around(masks), len(latents)
    weight = next(vae.parameters())
    references, spoken = _mouths(fps)

    def generated(part: Float16, windows: Float16) -> torch.Tensor:
        return torch.as_tensor(model.predict(part, windows)).to(weight.device, weight.dtype)

    def mean_statistics(part: Float16) -> Float32:
        each = [decoder_statistics(vae, generated(part, np.stack([window] * len(part)))) for window in references]
        statistics: Float32 = torch.stack(each).mean(0).cpu().numpy()
        return statistics

    # 1. the statistics of each frame
    found = list[Float32]()
    for start in range(0, n, BATCH):
        found += compute_in_parts(mean_statistics, latents[start : start + BATCH])
        progress(len(found), n + SAMPLES)
    statistics = np.stack(found)

    # 2. both decoders on other mouths, for frames with a face
    shown = np.flatnonzero(has_face)
    frames = shown[spread(len(shown), SAMPLES)]
    whole, cropped = Decoder(vae), CroppedDecoder(vae, window)

    def differences(part: npt.NDArray[np.int64]) -> UInt8:
        k = frames[part]
        with torch.inference_mode():
            z = generated(latents[k], spoken[part])
            made = cropped(z, torch.from_numpy(statistics[k]).to(weight.device)).round()
            levels: UInt8 = (made - window.cut(whole(z).round())).abs().to(torch.uint8).cpu().numpy()
        return levels  # (n, rows, columns, 3)

    pasted = list[UInt8]()
    for part in np.split(np.arange(SAMPLES), SAMPLES // BATCH):
        levels = np.stack(compute_in_parts(differences, part))
        pasted.append(levels[window.cut(masks[mask_index[frames[part]]]) > 0])  # (pixels, 3)
        progress(n + int(part[-1]) + 1, n + SAMPLES)
    return CroppedDecoding(window, statistics, *error_of(np.concatenate(pasted)))


def error_of(levels: UInt8) -> tuple[float, float]:
    """The mean of differences `(pixels, 3)`, and what 99.9 % of the pixels do not exceed in any channel."""
    if not len(levels):
        return 0.0, 0.0  # nothing is pasted
    largest = np.sort(levels.max(axis=1))
    return round(float(levels.mean()), 3), float(largest[-(-999 * len(largest) // 1000) - 1])
