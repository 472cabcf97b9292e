"""By how much sound and lips are apart, and how loud speech should be where. Knows no pictures."""

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

STEP_HZ = 100  # of the curves that sound is located by
SEARCH_S = 0.6  # how far sound may lie from where it was planned
LIPS_REACH_S = 0.4  # how far lips may lie from the sound
VOWELS, SONORANTS, FRICATIVES = "aeiouyɑɐɒæɛɪɔʊʌəɚɜ", "mnŋlɹrjwɾ", "fvszʃʒθðh"
SONORITY_DB = {VOWELS: -20.0, SONORANTS: -26.0, FRICATIVES: -36.0}  # a stop has -44, silence -70
STOP_DB, SILENCE_DB = -44.0, -70.0
SURE_BY_PHONEMES, SURE_BY_LOUDNESS = 0.5, 0.2  # best correlation below which no offset can be told


@dataclass(frozen=True, slots=True)
class SoundOffset:
    """frames: by how many frames the sound comes late against the lips (below 0: early). lips: how they follow what is
    said. sure: whether lips follow well enough to tell."""

    frames: float
    lips: LagCorrelation
    sure: bool


def planned_levels_db(phonemes: Sequence[Phoneme], seconds: float) -> Float64:
    """How loud speech should be, at STEP_HZ, from its phonemes: vowels loud, stops soft, pauses silent.

    Averaged over the window that `levels_db` hears with, so that both smear alike.
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
    """By how much the sound comes later than its phonemes say, in seconds; 0 for a clip that is too short to tell."""
    seconds = len(samples) / sample_rate_hz
    planned = planned_levels_db(phonemes, seconds)
    heard = np.maximum(levels_db(samples, sample_rate_hz, STEP_HZ, len(planned)), SILENCE_DB)
    reach = int(SEARCH_S * STEP_HZ)
    if len(planned) <= 4 * reach:
        return 0.0
    return correlate_lags(planned, heard, reach).lag / STEP_HZ


def offset_by_phonemes(expected: Float64, gap: Float64, delay_s: float, fps: float) -> SoundOffset:
    """expected: how lips should open `(n,)`, from phonemes; gap: how they do. delay_s: of the sound, see above."""
    lips = correlate_lags(expected, gap, lag_reach(len(gap), fps))
    return SoundOffset(delay_s * fps - lips.lag, lips, lips.best_r >= SURE_BY_PHONEMES)


def offset_by_loudness(levels: Float64, gap: Float64, fps: float) -> SoundOffset:
    """levels: of the sound at each frame, dB `(n,)`. Where phonemes are not known: lips open wider for louder sound."""
    lips = correlate_lags(np.maximum(levels, SILENCE_DB), gap, lag_reach(len(gap), fps))
    return SoundOffset(-lips.lag, lips, lips.best_r >= SURE_BY_LOUDNESS)


def lag_reach(frames: int, fps: float) -> int:
    """How many frames lips are looked for to either side of the sound."""
    return max(1, min(round(LIPS_REACH_S * fps), (frames - 1) // 5))
