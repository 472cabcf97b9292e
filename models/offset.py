"""Moves what lips are made from against what is heard, so that they are shown earlier or later. Knows no lips."""

from __future__ import annotations

import dataclasses

import numpy as np

from models.types import Float32, Speech


class Offset:
    """The segments of one utterance as the lips shall hear them: `seconds` later than they sound, earlier if negative.

    A later segment begins with the end of the one before. An earlier one ends in silence: what follows is not known.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before: Float32 = np.zeros(0, np.float32)  # the end of what has been heard

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
        seconds, end_s = shift / speech.sample_rate_hz * np.sign(self._seconds), speech.duration_s
        moved = (
            dataclasses.replace(p, start_s=max(p.start_s + seconds, 0.0), end_s=min(p.end_s + seconds, end_s))
            for p in speech.phonemes
        )
        return dataclasses.replace(speech, samples=samples, phonemes=tuple(p for p in moved if p.end_s > p.start_s))
