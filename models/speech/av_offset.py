"""Moves what lips are made from against what is heard, so that they are shown earlier or later. Knows no lips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.types import Float32, Phoneme, Speech

ROUNDING_S = 1e-6  # far below a sample: what is left of a phoneme that ends with its segment is none


class LipOffset:
    """The segments of one utterance as the lips shall hear them: `seconds` later than they sound, earlier if negative.

    A later segment begins with the end of the one before, sound and phonemes alike; one that lies across the join is
    in both. An earlier one ends in silence: what follows is not known.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before: Float32 = np.zeros(0, np.float32)  # the end of what has been heard
        self._carried: list[Phoneme] = []  # what it says, from the next segment's start on

    def __call__(self, speech: Speech) -> Speech:
        """The next segment, as long as it was."""
        shift = round(abs(self._seconds) * speech.sample_rate_hz)
        if not shift:
            return speech
        count, silence = len(speech.samples), np.zeros(shift, np.float32)
        if self._seconds > 0:
            heard = np.concatenate([silence, self._before, speech.samples])
            self._before = heard[-shift:]
            samples = heard[len(heard) - count - shift : len(heard) - shift]
        else:
            samples = np.concatenate([speech.samples, silence])[shift:]
        seconds = shift / speech.sample_rate_hz * float(np.sign(self._seconds))
        said = [*self._carried, *(_moved(p, seconds) for p in speech.phonemes)]
        self._carried = [_moved(p, -speech.duration_s) for p in said if p.end_s > speech.duration_s + ROUNDING_S]
        inside = (_cut(p, speech.duration_s) for p in said)
        return replace(speech, samples=samples, phonemes=tuple(p for p in inside if p.end_s > p.start_s + ROUNDING_S))


def _moved(phoneme: Phoneme, seconds: float) -> Phoneme:
    return replace(phoneme, start_s=phoneme.start_s + seconds, end_s=phoneme.end_s + seconds)


def _cut(phoneme: Phoneme, end_s: float) -> Phoneme:
    """The part of a phoneme between 0 and `end_s`; it ends where it starts if there is none."""
    start_s = min(max(phoneme.start_s, 0.0), end_s)
    return replace(phoneme, start_s=start_s, end_s=max(min(phoneme.end_s, end_s), start_s))
