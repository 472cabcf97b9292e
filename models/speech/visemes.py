"""Converts timed phonemes to mouth shapes per video frame (visemes), with coarticulation.

A track is float32 `(frames, 7)` with the columns of `training.presenter.MOUTH`; frame k is the mouth at
(k + 1/2) / fps. Target shapes on a fine time grid are smoothed with Gaussians: the jaw with σ = 32 ms; lip width and
rounding with σ = 50 ms and shifted 30 ms ahead of the sound (lips round before a rounded vowel); teeth and tongue with
σ = 30 ms. Lip closures (p, b, m), lip tucks (f, v) and pauses are added after smoothing, so that they stay complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.types import Phoneme

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

JAW, WIDTH, ROUNDING, TEETH, TONGUE, CLOSE, TUCK = range(7)
COLUMNS = 7
REST = (0.0, 0.12, 0.05, 0.3, 0.0, 1.0, 0.0)  # closed lips, as in a pause: `training.presenter.REST_MOUTH`
GRID_HZ = 200  # of the grid on which shapes are smoothed
LEAD_S = 0.03  # lip width and rounding move this much earlier than the sound
PAUSE_S = 0.1  # a silence this long closes the mouth

# IPA symbol → jaw, width, rounding, teeth, tongue, each 0..1
VISEMES: dict[str, tuple[float, float, float, float, float]] = {
    "ɑ": (0.80, 0.05, 0.00, 0.35, 0.3),
    "a": (0.80, 0.15, 0.00, 0.40, 0.3),
    "æ": (0.72, 0.45, 0.00, 0.60, 0.3),
    "ʌ": (0.52, 0.10, 0.00, 0.40, 0.3),
    "ɐ": (0.45, 0.10, 0.00, 0.40, 0.3),
    "ə": (0.32, 0.10, 0.00, 0.50, 0.3),
    "ɚ": (0.28, 0.00, 0.40, 0.50, 0.3),
    "ɜ": (0.34, 0.00, 0.40, 0.50, 0.3),
    "ɛ": (0.50, 0.45, 0.00, 0.60, 0.3),
    "e": (0.42, 0.55, 0.00, 0.60, 0.3),
    "ɪ": (0.28, 0.50, 0.00, 0.70, 0.3),
    "i": (0.20, 0.85, 0.00, 0.90, 0.3),
    "ɔ": (0.58, 0.00, 0.55, 0.30, 0.2),
    "ɒ": (0.62, 0.00, 0.40, 0.30, 0.2),
    "o": (0.40, 0.00, 0.80, 0.20, 0.1),
    "ʊ": (0.26, 0.00, 0.65, 0.30, 0.1),
    "u": (0.18, 0.00, 1.00, 0.10, 0.1),
    "m": (0.10, 0.10, 0.00, 0.00, 0.0),
    "b": (0.12, 0.10, 0.00, 0.00, 0.0),
    "p": (0.12, 0.10, 0.00, 0.00, 0.0),
    "f": (0.07, 0.15, 0.00, 1.00, 0.0),
    "v": (0.07, 0.15, 0.00, 1.00, 0.0),
    "θ": (0.16, 0.20, 0.00, 0.90, 1.0),
    "ð": (0.16, 0.20, 0.00, 0.90, 1.0),
    "s": (0.10, 0.50, 0.00, 1.00, 0.0),
    "z": (0.10, 0.50, 0.00, 1.00, 0.0),
    "ʃ": (0.14, 0.00, 0.60, 0.90, 0.0),
    "ʒ": (0.14, 0.00, 0.60, 0.90, 0.0),
    "t": (0.14, 0.30, 0.00, 0.90, 0.3),
    "d": (0.15, 0.30, 0.00, 0.90, 0.4),
    "ɾ": (0.18, 0.25, 0.00, 0.80, 0.5),
    "n": (0.16, 0.25, 0.00, 0.80, 0.5),
    "l": (0.24, 0.20, 0.00, 0.70, 1.0),
    "k": (0.22, 0.20, 0.00, 0.60, 0.1),
    "ɡ": (0.22, 0.20, 0.00, 0.60, 0.1),
    "ŋ": (0.22, 0.20, 0.00, 0.60, 0.1),
    "h": (0.26, 0.10, 0.00, 0.50, 0.2),
    "ɹ": (0.18, 0.00, 0.55, 0.50, 0.2),
    "w": (0.10, 0.00, 1.00, 0.10, 0.0),
    "j": (0.16, 0.60, 0.00, 0.80, 0.3),
    "ʔ": (0.20, 0.10, 0.00, 0.50, 0.2),
}
# Other IPA symbols → the key of VISEMES with the same mouth shape.
ALIASES = {
    **{"ᵊ": "ə", "ᵻ": "ɪ", "ɨ": "ɪ", "r": "ɹ", "ɻ": "ɹ", "g": "ɡ", "x": "h", "ç": "j", "ɬ": "l", "ɫ": "l", "ʧ": "ʃ"},
    **{"ʤ": "ʒ", "ɵ": "o", "ɤ": "ʌ", "y": "u", "ʉ": "u", "ɘ": "ə", "ɞ": "ɜ", "ɝ": "ɜ", "ʍ": "w", "c": "k", "ɲ": "n"},
}
CLOSERS, TUCKERS, SILENCE = "pbm", "fv", "_"


@dataclass(frozen=True, slots=True, eq=False)
class MouthTrack:
    """mouth: float32 `(frames, 7)`. closures: one frame inside each p, b or m. silent: bool `(frames,)`, at rest."""

    mouth: Float32
    closures: tuple[int, ...]
    silent: npt.NDArray[np.bool_]


def viseme_of(symbol: str) -> str | None:
    """The key of VISEMES for one IPA letter, or None if it has no shape (stress marks, for example)."""
    symbol = ALIASES.get(symbol, symbol)
    return symbol if symbol in VISEMES else None


def to_visemes(phonemes: Sequence[Phoneme]) -> list[Phoneme]:
    """Phonemes of any engine with symbols for `mouth_track`; a symbol without a shape becomes silence."""
    return [Phoneme(viseme_of(p.symbol) or SILENCE, p.start_s, p.end_s) for p in phonemes]


def lip_opening(mouth: npt.NDArray[np.floating]) -> Float64:
    """Distance between the lips `(n,)` of mouths `(n, 7)`, by the formula in training/presenter_shape.py."""
    jaw, rounding, close, tuck = (mouth[:, column].astype(np.float64) for column in (JAW, ROUNDING, CLOSE, TUCK))
    return (0.190 * jaw * (1 - 0.85 * tuck) + 0.020 * rounding + 0.006 * tuck) * (1 - close)


def mouth_track(phonemes: Sequence[Phoneme], frames: int, fps: int = 25) -> MouthTrack:
    """The mouth of `frames` video frames. phonemes: their symbols must be keys of VISEMES or `_` (`to_visemes`)."""
    steps = int(frames / fps * GRID_HZ) + GRID_HZ  # one more second, so that smoothing has no edge at the end
    targets = np.tile(np.array(REST[:CLOSE]), (steps, 1))  # (steps, 5)
    for phoneme in phonemes:
        if phoneme.symbol != SILENCE:
            first = int(phoneme.start_s * GRID_HZ)
            targets[first : max(int(phoneme.end_s * GRID_HZ), first + 1)] = VISEMES[phoneme.symbol]
    smooth = np.concatenate(
        [_blur(targets[:, :1], 0.032), _blur(targets[:, 1:3], 0.050), _blur(targets[:, 3:], 0.030)], axis=1
    )
    lead = int(LEAD_S * GRID_HZ)
    smooth[:-lead, 1:3] = smooth[lead:, 1:3]
    times = (np.arange(frames) + 0.5) / fps
    mouth = np.zeros((frames, COLUMNS))
    mouth[:, :CLOSE] = smooth[(times * GRID_HZ).astype(int)]
    closures = _close(phonemes, times, fps, mouth)
    mouth[:, TUCK] = _tuck(phonemes, times)
    silent = (mouth[:, CLOSE] > 0.99) & (mouth[:, JAW] < 0.01) & (mouth[:, ROUNDING] < REST[ROUNDING] + 0.02)
    return MouthTrack(mouth.astype(np.float32), closures, silent)


def _blur(values: Float64, sigma_s: float) -> Float64:
    """Gaussian smoothing along axis 0; edges are repeated."""
    sigma = sigma_s * GRID_HZ
    radius = int(4 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(values, ((radius, radius), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel, "valid") for column in padded.T], axis=1)


def _plateau(times: Float64, start_s: float, end_s: float, ramp_s: float) -> Float64:
    """1 between the two times, with linear ramps to 0 over `ramp_s` on both sides."""
    outside = np.maximum(np.maximum(start_s - times, times - end_s), 0)
    return np.clip(1 - outside / ramp_s, 0, 1)


def _close(phonemes: Sequence[Phoneme], times: Float64, fps: int, mouth: Float64) -> tuple[int, ...]:
    """Fill the CLOSE column in place. Returns one frame per p, b or m; it is closed even if the sound is shorter."""
    close, frames = mouth[:, CLOSE], []
    for phoneme in phonemes:
        if phoneme.symbol == SILENCE and phoneme.end_s - phoneme.start_s > PAUSE_S:
            np.maximum(close, _plateau(times, phoneme.start_s + 0.06, phoneme.end_s - 0.06, 0.06), out=close)
        elif phoneme.symbol in CLOSERS:
            end_s = min(phoneme.end_s, phoneme.start_s + 0.12)  # the lips open before the end of a long stop
            np.maximum(close, _plateau(times, phoneme.start_s + 0.012, end_s - 0.008, 0.05), out=close)
            frame = min(int((phoneme.start_s + end_s) / 2 * fps), len(times) - 1)
            close[frame] = 1
            frames.append(frame)
    return tuple(frames)


def _tuck(phonemes: Sequence[Phoneme], times: Float64) -> Float64:
    """The TUCK column: the lower lip under the upper teeth, at f and v."""
    tuck = np.zeros(len(times))
    for phoneme in phonemes:
        if phoneme.symbol in TUCKERS:
            np.maximum(tuck, _plateau(times, phoneme.start_s + 0.01, phoneme.end_s - 0.01, 0.05), out=tuck)
    return tuck
