"""Voice activity detection: finds the time spans of speech, from phonemes if the voice gives them, else from the audio.

Phoneme edges are uncertain by about 25 ms: an audible span that overlaps a phoneme counts completely; one that does not
is not speech.

The audio of a whole segment is analysed at once. A core is a voiced span of at least CORE_S; it is extended in both
directions until the level falls into the background (hysteresis). Breaths and clicks have no core. Thresholds adapt to
the background and to the loudest speech of the utterance so far, so that a segment of background only, or of speech
only, is recognised. Before the first speech, a segment with constant level and no pitch is background: this holds for
noise of any colour, but not for speech or whispering. A steady tone or hum cannot be distinguished from a sung vowel
and counts as speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.types import Float32, Phoneme, Speech

Spans = npt.NDArray[np.float64]  # (m, 2): start and end in seconds, sorted, not overlapping
Levels = npt.NDArray[np.float64]  # dB relative to full scale, one value per HOP_S
Runs = list[tuple[int, int]]  # first hop and one past the last hop of each run

SILENCE = "_"  # the phoneme symbol for silence
HOP_S, FRAME_S = 0.010, 0.030  # a frame is 3 periods of a 100 Hz voice, and extends 10 ms beyond each end of its hop
VOICE_HZ = (90.0, 1000.0)  # most of the energy of voiced sounds, little of that of breath and hiss
SOUND_HZ = (90.0, 8000.0)  # mains hum is below; no speech sound with visible lip motion is above
QUIETEST_VOICE_DB, QUIETEST_SOUND_DB = -55.0, -60.0  # relative to full scale: softer than any speech
VOICE_RANGE_DB, SOUND_RANGE_DB = 30.0, 40.0  # from the loudest speech down to the softest voiced and other sounds
ABOVE_VOICE_FLOOR_DB, ABOVE_SOUND_FLOOR_DB = 9.0, 6.0  # threshold above the background; noise varies by 1.5 dB per hop
LOUD, QUIET = 95, 5  # percentiles of a segment's levels that stand for speech and background
MIN_RANGE_DB = 20.0  # between them: without a pause, a segment's quietest hops are not background
SAME_BACKGROUND_DB = 3.0  # a background at most this much louder than the known one is the same background
CORE_S = 0.03  # a shorter voiced span is a click
# A segment of background only. Range of the level over 0.1 s, 5th to 95th percentile, as measured: at most 3.3 dB for
# white to brown noise; 8 dB for speech and 7 dB for whispering, even if they are 5 dB below such noise.
STEADY_S, STEADY_RANGE_DB, MIN_STEADY_S = 0.1, 5.0, 1.0
# RMS deviation of the mean spectrum from its running median, as measured over 1 s: noise 1.3 dB, a humming fan 1.7 dB,
# a vowel 20 dB.
LINES_DB, LINES_FRAME_S, MEDIAN_HZ = 3.0, 0.128, 250.0
NEAR_S = 0.15  # a sound this close to a core belongs to it: the burst after the closure of a stop consonant


class ActivityDetector:
    """Detects speech in the segments of one utterance; remembers its loudness and background between segments."""

    def __init__(self) -> None:
        self._voice = _Band(ABOVE_VOICE_FLOOR_DB, VOICE_RANGE_DB, QUIETEST_VOICE_DB)
        self._sound = _Band(ABOVE_SOUND_FLOOR_DB, SOUND_RANGE_DB, QUIETEST_SOUND_DB)

    def __call__(self, speech: Speech) -> Spans:
        """The spans of speech in the next segment, seconds from its first sample."""
        audible = self.from_sound(speech.samples, speech.sample_rate_hz)
        if not speech.phonemes:
            return audible
        known = from_phonemes(speech.phonemes)
        return merge_spans(np.concatenate([known, *(span[None] for span in audible if _overlaps(span, known))]))

    def from_sound(self, samples: Float32, sample_rate_hz: int) -> Spans:
        """The spans of speech in float32 mono `(n,)`. Silence, noise below −60 dB and breaths are not speech."""
        voice, sound = band_levels_db(samples, sample_rate_hz, VOICE_HZ, SOUND_HZ)
        if not len(voice):
            return np.zeros((0, 2))
        if not self._voice.has_speech and is_background(samples, sample_rate_hz, voice, sound):
            # not remembered: a known background would fragment speech that is within 5 dB of it
            return np.zeros((0, 2))
        voiced, audible = voice > self._voice.threshold_db(voice), sound > self._sound.threshold_db(sound)
        spans = np.array(_extend(_runs(voiced), _runs(audible | voiced)), np.float64).reshape(-1, 2) * HOP_S
        return merge_spans(np.clip(spans, 0.0, len(samples) / sample_rate_hz))


@dataclass(slots=True)
class _Band:
    """Levels of one frequency band: the loudest speech so far, and the background once a pause has shown it."""

    above_floor_db: float
    range_db: float
    quietest_db: float
    loudest_db: float = -np.inf
    background_db: float = -np.inf

    @property
    def has_speech(self) -> bool:
        """True if anything was loud enough for speech."""
        return self.loudest_db > self.quietest_db

    def threshold_db(self, levels: Levels) -> float:
        """The threshold for a segment with these levels, `(n,)`. Updates the loudest speech and the background."""
        loud, quiet = (float(np.percentile(levels, share)) for share in (LOUD, QUIET))
        self.loudest_db = max(self.loudest_db, loud)
        floor = min(quiet, self.loudest_db - MIN_RANGE_DB)
        # the quietest hops are background, even if close to the speech, if they are as loud as the known background
        floor = max(floor, min(quiet, self.background_db + SAME_BACKGROUND_DB))
        if loud - quiet >= MIN_RANGE_DB / 2:
            self.background_db = quiet
        return max(floor + self.above_floor_db, self.loudest_db - self.range_db, self.quietest_db)


def is_background(samples: Float32, sample_rate_hz: int, voice: Levels, sound: Levels) -> bool:
    """True if a segment is only noise: its level is constant and it has no pitch.

    voice, sound: its levels in VOICE_HZ and SOUND_HZ.
    """
    if len(samples) < MIN_STEADY_S * sample_rate_hz:
        return False
    return max(_range_db(voice), _range_db(sound)) < STEADY_RANGE_DB and _lines_db(samples, sample_rate_hz) < LINES_DB


def _range_db(levels: Levels) -> float:
    """Range of the level over STEADY_S, without the ends of the segment, whose frames include zeros."""
    count = round(STEADY_S / HOP_S)
    means = np.convolve(10 ** (levels[1:-2] / 10), np.full(count, 1 / count), "valid")
    low, high = np.percentile(10 * np.log10(means), (QUIET, LOUD))
    return float(high - low)


def _lines_db(samples: Float32, sample_rate_hz: int) -> float:
    """RMS deviation of the mean spectrum in VOICE_HZ from its running median: the harmonics of a pitch are lines."""
    size = round(LINES_FRAME_S * sample_rate_hz)
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[:: size // 2]
    power = (np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2).mean(0)
    levels, hz = 10 * np.log10(power + 1e-12), sample_rate_hz / size
    reach, first, last = round(MEDIAN_HZ / 2 / hz), round(VOICE_HZ[0] / hz), round(VOICE_HZ[1] / hz)
    medians = [np.median(levels[max(bin - reach, 0) : bin + reach + 1]) for bin in range(first, last)]
    return float(np.std(levels[first:last] - medians))


def from_phonemes(phonemes: Sequence[Phoneme]) -> Spans:
    """The spans of phonemes other than silence."""
    spans = [(p.start_s, p.end_s) for p in phonemes if p.symbol != SILENCE and p.end_s > p.start_s]
    return merge_spans(np.array(spans, np.float64).reshape(-1, 2))


def _overlaps(span: npt.NDArray[np.float64], spans: Spans) -> bool:
    return bool(np.any((spans[:, 0] < span[1]) & (span[0] < spans[:, 1])))


def band_levels_db(samples: Float32, sample_rate_hz: int, *bands_hz: tuple[float, float]) -> list[Levels]:
    """RMS level of each band in FRAME_S around the middle of each hop, dB re full scale, ≥ −120: `(ceil(n / hop),)`."""
    hop, size = round(HOP_S * sample_rate_hz), round(FRAME_S * sample_rate_hz)
    count = -(-len(samples) // hop)
    around = np.pad(samples, ((size - hop) // 2, size + hop))
    frames = np.lib.stride_tricks.sliding_window_view(around, size)[: count * hop : hop]
    window = np.hanning(size).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2  # (count, size // 2 + 1)
    levels = list[Levels]()
    for band_hz in bands_hz:
        first, last = (round(hz * size / sample_rate_hz) for hz in band_hz)
        mean = 2 * power[:, first : last + 1].sum(1) / (size * np.sum(window**2))  # Parseval
        levels.append(10 * np.log10(np.maximum(mean, 1e-12)))
    return levels


def levels_db(samples: Float32, sample_rate_hz: int, band_hz: tuple[float, float]) -> Levels:
    """`band_levels_db` of one band."""
    return band_levels_db(samples, sample_rate_hz, band_hz)[0]


def _runs(flags: npt.NDArray[np.bool_]) -> Runs:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _extend(voiced: Runs, audible: Runs) -> Runs:
    """The runs of `audible` that contain a core of `voiced`, and those near such a run."""
    core, near = round(CORE_S / HOP_S), round(NEAR_S / HOP_S)
    cores = [run for run in voiced if run[1] - run[0] >= core]
    sure = [run for run in audible if any(run[0] <= first and last <= run[1] for first, last in cores)]
    return [run for run in audible if any(run[0] - last <= near and first - run[1] <= near for first, last in sure)]


def merge_spans(spans: Spans) -> Spans:
    """Sort spans and merge those that touch or overlap."""
    kept: list[list[float]] = []
    for start, end in spans[np.argsort(spans[:, 0])].tolist():
        if kept and start <= kept[-1][1] + 1e-6:
            kept[-1][1] = max(kept[-1][1], end)
        else:
            kept.append([start, end])
    return np.array(kept, np.float64).reshape(-1, 2)


PAUSE_S = 0.08  # minimum length; shorter ones are closures of stop consonants
PAUSE_DB = 25.0  # below the loudest speech of the segment


def pause_frames(speech: Speech, fps: int) -> list[int]:
    """Video frames before which playback may stop without cutting a word: the middles of the pauses in a segment."""
    levels = levels_db(speech.samples, speech.sample_rate_hz, SOUND_HZ)
    if not len(levels):
        return []
    runs = _runs(levels < max(np.percentile(levels, LOUD) - PAUSE_DB, QUIETEST_SOUND_DB))
    inside = [run for run in runs if run[0] and run[1] < len(levels) and (run[1] - run[0]) * HOP_S >= PAUSE_S]
    return sorted({round((first + last) / 2 * HOP_S * fps) for first, last in inside})
