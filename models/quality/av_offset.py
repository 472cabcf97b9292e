"""Measures the offset between sound and lips, and predicts the loudness of speech from its phonemes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from models.quality.lips import LagCorrelation, correlate_lags
from models.quality.silence import WINDOW_S, levels_db
from models.types import Float32, Phoneme

Float64 = npt.NDArray[np.float64]

STEP_HZ = 100  # sample rate of the loudness curves
SEARCH_S = 0.6  # largest delay of the sound that is searched
LIPS_REACH_S = 0.4  # largest offset of the lips that is searched
VOWELS, SONORANTS, FRICATIVES = "aeiouyɑɐɒæɛɪɔʊʌəɚɜ", "mnŋlɹrjwɾ", "fvszʃʒθðh"
SONORITY_DB = {VOWELS: -20.0, SONORANTS: -26.0, FRICATIVES: -36.0}  # typical levels below full scale
STOP_DB, SILENCE_DB = -44.0, -70.0
MIN_R_PHONEMES, MIN_R_LOUDNESS = 0.5, 0.2  # best correlation below which the offset is not reliable


@dataclass(frozen=True, slots=True)
class SoundOffset:
    """frames: delay of the sound behind the lips in frames; negative: the sound is early. lips: correlation of the lips
    with the speech. sure: whether the correlation is high enough for a reliable offset."""

    frames: float
    lips: LagCorrelation
    sure: bool


def planned_levels_db(phonemes: Sequence[Phoneme], seconds: float) -> Float64:
    """Predict the loudness of speech in dB at STEP_HZ from its phonemes: vowels loud, stops soft, pauses silent.

    Averaged over the same window as in `levels_db`, so that both curves have the same time resolution.
    """
    levels = np.full(int(seconds * STEP_HZ), SILENCE_DB)
    for phoneme in phonemes:
        known = (level for letters, level in SONORITY_DB.items() if phoneme.symbol[:1] in letters)
        level = SILENCE_DB if phoneme.symbol == "_" else next(known, STOP_DB)
        levels[int(phoneme.start_s * STEP_HZ) : int(phoneme.end_s * STEP_HZ)] = level
    width = round(WINDOW_S * STEP_HZ) // 2 * 2 + 1
    padded = np.pad(10 ** (levels / 10), width // 2, mode="edge")
    return cast(Float64, 10 * np.log10(np.convolve(padded, np.ones(width) / width, "valid")))


def sound_delay_s(phonemes: Sequence[Phoneme], samples: Float32, sample_rate_hz: int) -> float:
    """Return the delay of the sound behind its phonemes' times in seconds; 0 for a clip that is too short."""
    seconds = len(samples) / sample_rate_hz
    planned = planned_levels_db(phonemes, seconds)
    heard = np.maximum(levels_db(samples, sample_rate_hz, STEP_HZ, len(planned)), SILENCE_DB)
    reach = int(SEARCH_S * STEP_HZ)
    if len(planned) <= 4 * reach:
        return 0.0
    return correlate_lags(planned, heard, reach).lag / STEP_HZ


def offset_by_phonemes(expected: Float64, gap: Float64, delay_s: float, fps: float) -> SoundOffset:
    """Measure the offset where phonemes are known.

    expected: the lips' opening `(n,)` predicted from the phonemes. gap: the measured one. delay_s: see `sound_delay_s`.
    """
    lips = correlate_lags(expected, gap, lag_reach(len(gap), fps))
    return SoundOffset(delay_s * fps - lips.lag, lips, lips.best_r >= MIN_R_PHONEMES)


def offset_by_loudness(levels: Float64, gap: Float64, fps: float) -> SoundOffset:
    """Measure the offset where phonemes are not known, assuming that lips open wider for louder sound.

    levels: of the sound at each frame, dB `(n,)`. gap: the lips' opening `(n,)`.
    """
    lips = correlate_lags(np.maximum(levels, SILENCE_DB), gap, lag_reach(len(gap), fps))
    return SoundOffset(-lips.lag, lips, lips.best_r >= MIN_R_LOUDNESS)


def lag_reach(frames: int, fps: float) -> int:
    """Return the largest offset of the lips, in frames to either side, that is searched."""
    return max(1, min(round(LIPS_REACH_S * fps), (frames - 1) // 5))
