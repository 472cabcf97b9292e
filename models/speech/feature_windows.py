"""Bends feature windows over time: lips close ahead of plosives, and rest in long silences. Knows no network's shape.

An encoder that hears no word in its whole context makes features that a network trained on speech has hardly seen: its
mouth stands a little open (the embedded pair's by 0.012 of the eyes' distance, against 0.003 at rest). Just after
speech it rests as it should, so the window of that moment takes the place of those in long silences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from models.speech.activity import Spans
from models.speech.visemes import CLOSERS
from models.types import WHISPER_HZ, Float16, Float32, Phoneme

Float64 = npt.NDArray[np.float64]

VOWEL_S, VOWEL_HZ, VOWEL_LEVEL = 0.5, 120.0, 0.1  # what is heard before the rest; level is RMS
REST_AFTER_S, SILENCE_S = 0.7, 1.0  # after the vowel: when its rest is taken, and how long it is silent
CLEAR_S, BEND_S = 0.3, 0.2  # from speech: windows stay as they are so far, and are the rest's after so long again
PLOSIVE_BEND_S = 0.08  # in which time runs ahead, and back: at least the longest lead, or it would run backwards


def rest_window(windows: Callable[[Float32], Float16]) -> Float16:
    """The window `(50, 384)` of a mouth at rest, for an encoder: `windows` makes `(n, 50, 384)` of 16 kHz at 25 fps."""
    times = np.arange(round(VOWEL_S * WHISPER_HZ)) / WHISPER_HZ
    vowel = np.sum([np.sin(2 * np.pi * VOWEL_HZ * k * times + k) / k for k in range(1, 30)], axis=0)
    vowel *= VOWEL_LEVEL / np.sqrt(np.mean(vowel**2))
    heard = np.pad(vowel, (0, round(SILENCE_S * WHISPER_HZ))).astype(np.float32)
    return cast(Float16, windows(heard)[round((VOWEL_S + REST_AFTER_S) * 25)].copy())


def blend_rest(windows: Float16, rest: Float16, active: Spans, fps: int, last: bool) -> Float16:
    """Windows `(n, 50, 384)` of a segment with those far from speech bent to `rest`. active: when it sounds, seconds.

    Speech may lie beyond either end of the segment, but not behind the last one.
    """
    middle = (np.arange(len(windows)) + 0.5) / fps
    away = middle.copy()  # from the segment's beginning
    if not last:
        away = np.minimum(away, len(windows) / fps - middle)
    for start, end in active.tolist():
        away = np.minimum(away, np.maximum(np.maximum(start - middle, middle - end), 0.0))
    share = np.clip((away - CLEAR_S) / BEND_S, 0.0, 1.0)
    if not share.any():
        return windows
    weight = share.astype(np.float32)[:, None, None]
    return (windows * (1 - weight) + rest.astype(np.float32) * weight).astype(np.float16)


def plosive_shifts(phonemes: Sequence[Phoneme], frames: int, fps: int, lead_s: float) -> Float64:
    """How much ahead of its own time each frame's window is to be taken, seconds `(frames,)`: `lead_s` around p, b, m.

    lead_s: at most PLOSIVE_BEND_S, so that time never runs backwards.
    """
    assert 0 <= lead_s <= PLOSIVE_BEND_S, lead_s
    middle, near = (np.arange(frames) + 0.5) / fps, np.zeros(frames)
    for phoneme in phonemes:
        if phoneme.symbol in CLOSERS:
            before, after = phoneme.start_s - lead_s - middle, middle - (phoneme.end_s - lead_s)
            away = np.maximum(np.maximum(before, after), 0.0)
            near = np.maximum(near, np.clip(1.0 - away / PLOSIVE_BEND_S, 0.0, 1.0))
    return lead_s * near
