"""Tells when a speech sounds: from its phonemes where the voice knows them, else from the sound. Knows no faces.

Phonemes' edges are some 25 ms uncertain, so a sound that meets one counts as a whole; a sound apart is no speech.
The sound is judged a whole segment at a time, so hysteresis works both ways in time: a stretch that is surely voiced
grows forward and back to where the sound sinks into the background. A breath or a click has no such core. The levels
adapt: to the background and to the loudest speech of the utterance so far, so that a segment that is nothing but
background, or speech from end to end, is known for what it is. Before any speech has been heard, a segment that keeps
one level and has no pitch is background: noise of any colour does, speech and whispering do not. A steady tone or hum
cannot be told from a sung vowel, and counts as speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from models.types import Float32, Phoneme, Speech

Spans = npt.NDArray[np.float64]  # (m, 2): start and end in seconds, in order, apart from one another
Levels = npt.NDArray[np.float64]  # dB below full scale, a value each HOP_S
Runs = list[tuple[int, int]]  # first and one past the last of each, in hops

SILENCE = "_"  # the phoneme of silence
HOP_S, FRAME_S = 0.010, 0.030  # three periods of a voice at 100 Hz; a hop hears 10 ms beyond either of its ends
VOICE_HZ = (90.0, 1000.0)  # where voiced sounds have most of their energy, and breath and hiss have little of theirs
SOUND_HZ = (90.0, 8000.0)  # hum is below; nothing that lips do is above
QUIETEST_VOICE_DB, QUIETEST_SOUND_DB = -55.0, -60.0  # below full scale: nobody speaks so softly
VOICE_RANGE_DB, SOUND_RANGE_DB = 30.0, 40.0  # how far below the loudest speech its softest voiced and other sounds are
ABOVE_VOICE_FLOOR_DB, ABOVE_SOUND_FLOOR_DB = 9.0, 6.0  # the second keeps noise out, whose hops vary by 1.5 dB
LOUD, QUIET = 95, 5  # percentiles of a segment's levels: its speech, its background
LEAST_RANGE_DB = 20.0  # between them: a segment may be without a pause, and then its quietest hops are no background
SAME_BACKGROUND_DB = 3.0  # of the utterance's: a background this much louder is the same one still
CORE_S = 0.03  # a shorter voiced stretch is a click
# A background by itself: the level of 0.1 s, 5th to 95th percentile, is within 3.3 dB for white to brown noise; for
# speech it goes 8 dB, for whispering 7 dB, even where either lies 5 dB below such noise.
STEADY_S, STEADY_RANGE_DB, LEAST_STEADY_S = 0.1, 5.0, 1.0
# How far its mean spectrum strays from its own course: noise 1.3 dB (of a second), a fan that hums 1.7, a vowel 20.
LINES_DB, LINES_FRAME_S, COURSE_HZ = 3.0, 0.128, 250.0
NEAR_S = 0.15  # a sound so close to a core belongs to it: what a stop consonant lets out after its closure


class ActivityDetector:
    """The ear of one utterance: it remembers from segment to segment how loud the voice is, and how loud the rest."""

    def __init__(self) -> None:
        self._voice = _Band(ABOVE_VOICE_FLOOR_DB, VOICE_RANGE_DB, QUIETEST_VOICE_DB)
        self._sound = _Band(ABOVE_SOUND_FLOOR_DB, SOUND_RANGE_DB, QUIETEST_SOUND_DB)

    def __call__(self, speech: Speech) -> Spans:
        """When the segment sounds, seconds from its first sample."""
        heard = self.from_sound(speech.samples, speech.sample_rate_hz)
        if not speech.phonemes:
            return heard
        known = from_phonemes(speech.phonemes)
        return merge_spans(np.concatenate([known, *(span[None] for span in heard if _meets(span, known))]))

    def from_sound(self, samples: Float32, sample_rate_hz: int) -> Spans:
        """When float32 mono `(n,)` sounds. Digital silence, noise below −60 dB and breaths do not."""
        voice, sound = levels_db(samples, sample_rate_hz, VOICE_HZ), levels_db(samples, sample_rate_hz, SOUND_HZ)
        if not len(voice):
            return np.zeros((0, 2))
        if not self._voice.heard and is_background(samples, sample_rate_hz, voice, sound):
            # not remembered: speech within 5 dB of it is cut to pieces by a background that is known
            return np.zeros((0, 2))
        voiced, heard = voice > self._voice.threshold_db(voice), sound > self._sound.threshold_db(sound)
        spans = np.array(_grown(_runs(voiced), _runs(heard | voiced)), np.float64).reshape(-1, 2) * HOP_S
        return merge_spans(np.clip(spans, 0.0, len(samples) / sample_rate_hz))


@dataclass(slots=True)
class _Band:
    """What is known of a band: its loudest speech, and its background once a pause has let it be heard."""

    above_floor_db: float
    range_db: float
    quietest_db: float
    loudest_db: float = -np.inf
    background_db: float = -np.inf

    @property
    def heard(self) -> bool:
        """Whether anything was loud enough for speech."""
        return self.loudest_db > self.quietest_db

    def threshold_db(self, levels: Levels) -> float:
        """What is louder sounds, in a segment with these levels, `(n,)`; they are remembered."""
        loud, quiet = (float(np.percentile(levels, share)) for share in (LOUD, QUIET))
        self.loudest_db = max(self.loudest_db, loud)
        floor = min(quiet, self.loudest_db - LEAST_RANGE_DB)
        # its quietest hops are background, however near to its speech, where they are as loud as that is known to be
        floor = max(floor, min(quiet, self.background_db + SAME_BACKGROUND_DB))
        if loud - quiet >= LEAST_RANGE_DB / 2:
            self.background_db = quiet
        return max(floor + self.above_floor_db, self.loudest_db - self.range_db, self.quietest_db)


def is_background(samples: Float32, sample_rate_hz: int, voice: Levels, sound: Levels) -> bool:
    """Whether a segment by itself is noise and nothing else: of one level from end to end, and without a pitch."""
    if len(samples) < LEAST_STEADY_S * sample_rate_hz:
        return False
    return max(_range_db(voice), _range_db(sound)) < STEADY_RANGE_DB and _lines_db(samples, sample_rate_hz) < LINES_DB


def _range_db(levels: Levels) -> float:
    """How far the level of `STEADY_S` goes, without the segment's ends, where there is silence beyond."""
    count = round(STEADY_S / HOP_S)
    means = np.convolve(10 ** (levels[1:-2] / 10), np.full(count, 1 / count), "valid")
    low, high = np.percentile(10 * np.log10(means), (QUIET, LOUD))
    return float(high - low)


def _lines_db(samples: Float32, sample_rate_hz: int) -> float:
    """How far the mean spectrum of voiced sounds' band strays from its own course, rms: pitch makes lines in it."""
    size = round(LINES_FRAME_S * sample_rate_hz)
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[:: size // 2]
    power = (np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2).mean(0)
    levels, hz = 10 * np.log10(power + 1e-12), sample_rate_hz / size
    reach, first, last = round(COURSE_HZ / 2 / hz), round(VOICE_HZ[0] / hz), round(VOICE_HZ[1] / hz)
    course = [np.median(levels[max(bin - reach, 0) : bin + reach + 1]) for bin in range(first, last)]
    return float(np.std(levels[first:last] - course))


def from_phonemes(phonemes: Sequence[Phoneme]) -> Spans:
    """When phonemes other than silence sound."""
    spans = [(p.start_s, p.end_s) for p in phonemes if p.symbol != SILENCE and p.end_s > p.start_s]
    return merge_spans(np.array(spans, np.float64).reshape(-1, 2))


def _meets(span: npt.NDArray[np.float64], spans: Spans) -> bool:
    return bool(np.any((spans[:, 0] < span[1]) & (span[0] < spans[:, 1])))


def levels_db(samples: Float32, sample_rate_hz: int, band_hz: tuple[float, float]) -> Levels:
    """RMS of a band around each `HOP_S`'s middle, dB below full scale, at least −120: `(ceil(n / hop),)`."""
    hop, size = round(HOP_S * sample_rate_hz), round(FRAME_S * sample_rate_hz)
    count = -(-len(samples) // hop)
    around = np.pad(samples, ((size - hop) // 2, size + hop))
    frames = np.lib.stride_tricks.sliding_window_view(around, size)[: count * hop : hop]
    window = np.hanning(size).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2  # (count, size // 2 + 1)
    first, last = (round(hz * size / sample_rate_hz) for hz in band_hz)
    mean = 2 * power[:, first : last + 1].sum(1) / (size * np.sum(window**2))  # Parseval
    return cast(Levels, 10 * np.log10(np.maximum(mean, 1e-12)))


def _runs(flags: npt.NDArray[np.bool_]) -> Runs:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _grown(voiced: Runs, heard: Runs) -> Runs:
    """The stretches of `heard` that hold a core of `voiced`, and those near one."""
    core, near = round(CORE_S / HOP_S), round(NEAR_S / HOP_S)
    cores = [run for run in voiced if run[1] - run[0] >= core]
    sure = [run for run in heard if any(run[0] <= first and last <= run[1] for first, last in cores)]
    return [run for run in heard if any(run[0] - last <= near and first - run[1] <= near for first, last in sure)]


def merge_spans(spans: Spans) -> Spans:
    """Spans in order, those that meet made one."""
    kept: list[list[float]] = []
    for start, end in spans[np.argsort(spans[:, 0])].tolist():
        if kept and start <= kept[-1][1] + 1e-6:
            kept[-1][1] = max(kept[-1][1], end)
        else:
            kept.append([start, end])
    return np.array(kept, np.float64).reshape(-1, 2)


PAUSE_S = 0.08  # of quiet: shorter ones are closures of stop consonants
PAUSE_DB = 25.0  # below the loudest speech of the segment


def pause_frames(speech: Speech, fps: int) -> list[int]:
    """Frames of a segment before which speech may be stopped unheard: the middle of each pause inside it."""
    levels = levels_db(speech.samples, speech.sample_rate_hz, SOUND_HZ)
    if not len(levels):
        return []
    runs = _runs(levels < max(np.percentile(levels, LOUD) - PAUSE_DB, QUIETEST_SOUND_DB))
    inside = [run for run in runs if run[0] and run[1] < len(levels) and (run[1] - run[0]) * HOP_S >= PAUSE_S]
    return sorted({round((first + last) / 2 * HOP_S * fps) for first, last in inside})
