"""Shifts the audio from which lips are generated, so that lips move earlier or later than the sound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.types import Float32, Phoneme, Speech

ROUNDING_S = 1e-6  # less than a sample; shorter remainders of a phoneme are dropped


class LipOffset:
    """Delays the segments of one utterance by `seconds`, or advances them if negative.

    A delayed segment begins with the end of the previous one, samples and phonemes; a phoneme across the boundary is
    split. An advanced segment ends in silence, because the next segment is not known yet.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before: Float32 = np.zeros(0, np.float32)  # the last samples of the previous segment
        self._carried: list[Phoneme] = []  # their phonemes, in seconds from the next segment's start

    def __call__(self, speech: Speech) -> Speech:
        """The next segment, shifted; its length stays the same."""
        shift = round(abs(self._seconds) * speech.sample_rate_hz)
        if not shift:
            return speech
        count, silence = len(speech.samples), np.zeros(shift, np.float32)
        if self._seconds > 0:
            joined = np.concatenate([silence, self._before, speech.samples])
            self._before = joined[-shift:]
            samples = joined[len(joined) - count - shift : len(joined) - shift]
        else:
            samples = np.concatenate([speech.samples, silence])[shift:]
        seconds = shift / speech.sample_rate_hz * float(np.sign(self._seconds))
        phonemes = [*self._carried, *(_moved(p, seconds) for p in speech.phonemes)]
        self._carried = [_moved(p, -speech.duration_s) for p in phonemes if p.end_s > speech.duration_s + ROUNDING_S]
        inside = (_cut(p, speech.duration_s) for p in phonemes)
        return replace(speech, samples=samples, phonemes=tuple(p for p in inside if p.end_s > p.start_s + ROUNDING_S))


def _moved(phoneme: Phoneme, seconds: float) -> Phoneme:
    return replace(phoneme, start_s=phoneme.start_s + seconds, end_s=phoneme.end_s + seconds)


def _cut(phoneme: Phoneme, end_s: float) -> Phoneme:
    """The part of a phoneme between 0 and `end_s`; of zero length if there is none."""
    start_s = min(max(phoneme.start_s, 0.0), end_s)
    return replace(phoneme, start_s=start_s, end_s=max(min(phoneme.end_s, end_s), start_s))
