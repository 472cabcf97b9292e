"""Changes feature windows: the mouth rests in long silences, and lips close ahead of plosives.

Without speech in its whole context, the encoder gives features that the lip-sync network rarely saw in training, and
the mouth stays slightly open (with the embedded networks by 0.012 of the eye distance, against 0.003 at rest). Shortly
after speech the mouth rests correctly, so the window from that moment replaces those in long silences.
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

VOWEL_S, VOWEL_HZ, VOWEL_LEVEL = 0.5, 120.0, 0.1  # the synthetic vowel before the rest: length, pitch, RMS level
REST_AFTER_S, SILENCE_S = 0.7, 1.0  # after the vowel: when the rest window is taken, and the length of the silence
CLEAR_S, BEND_S = 0.3, 0.2  # distance from speech that is unchanged, then length of the blend to the rest window
PLOSIVE_BEND_S = 0.08  # length of each transition; at least the lead, so that time never runs backwards


def rest_window(windows: Callable[[Float32], Float16]) -> Float16:
    """The encoder's window for a resting mouth, float16 `(50, 384)`.

    windows: the encoder, from float32 mono `(n,)` at 16 kHz to windows `(n, 50, 384)` at 25 fps.
    """
    times = np.arange(round(VOWEL_S * WHISPER_HZ)) / WHISPER_HZ
    vowel = np.sum([np.sin(2 * np.pi * VOWEL_HZ * k * times + k) / k for k in range(1, 30)], axis=0)
    vowel *= VOWEL_LEVEL / np.sqrt(np.mean(vowel**2))
    samples = np.pad(vowel, (0, round(SILENCE_S * WHISPER_HZ))).astype(np.float32)
    return cast(Float16, windows(samples)[round((VOWEL_S + REST_AFTER_S) * 25)].copy())


def blend_rest(windows: Float16, rest: Float16, active: Spans, fps: int, last: bool) -> Float16:
    """Windows `(n, 50, 384)` of a segment, blended to `rest` `(50, 384)` where they are far from speech.

    active: spans of speech in the segment, seconds. last: no segment follows; otherwise speech is assumed right before
    and right after the segment.
    """
    middle = (np.arange(len(windows)) + 0.5) / fps
    away = middle.copy()  # seconds from the nearest speech; the segment's start counts as speech
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
    """Seconds by which each frame's window is taken later, `(frames,)`: `lead_s` around p, b and m, else 0.

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
