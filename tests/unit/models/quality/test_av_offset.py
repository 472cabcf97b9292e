"""models.quality.av_offset: known offsets between sound and lips are measured."""

from __future__ import annotations

import numpy as np
import pytest

from models.quality.av_offset import offset_by_loudness, offset_by_phonemes, planned_levels_db, sound_delay_s
from models.quality.silence import levels_db
from models.speech.visemes import lip_opening, mouth_track, to_visemes
from models.types import Phoneme

RATE, FPS = 16_000, 25
LEVEL = {"ɑ": 0.2, "i": 0.12, "m": 0.08, "s": 0.02, "t": 0.006, "_": 0.0}


def phonemes(seconds: float = 8.0) -> list[Phoneme]:
    """Random syllables with a pause now and then."""
    random, at, made = np.random.default_rng(7), 0.2, [Phoneme("_", 0, 0.2)]
    while at < seconds - 0.6:
        for symbol in random.choice(["mɑ", "ti", "sɑ", "mi", "tɑ", "_"], p=[0.25, 0.2, 0.15, 0.15, 0.15, 0.1]):
            lasts = float(random.uniform(0.06, 0.18)) * (2 if symbol == "_" else 1)
            made.append(Phoneme(str(symbol), at, at + lasts))
            at += lasts
    return [*made, Phoneme("_", at, seconds)]


PHONEMES = phonemes()
FRAMES = 200


def spoken(delay_s: float = 0.0) -> np.ndarray:
    """Noise with the loudness of each phoneme, delayed by `delay_s`."""
    samples = np.random.default_rng(1).normal(size=8 * RATE).astype(np.float32)
    level = np.zeros(8 * RATE, np.float32)
    for phoneme in PHONEMES:
        level[int(phoneme.start_s * RATE) : int(phoneme.end_s * RATE)] = LEVEL[phoneme.symbol]
    return np.roll(samples * level, round(delay_s * RATE))


OPENING = lip_opening(mouth_track(to_visemes(PHONEMES), FRAMES, FPS).mouth)


def test_planned_levels_are_loud_in_vowels_and_silent_in_pauses() -> None:
    levels = planned_levels_db([Phoneme("_", 0, 0.1), Phoneme("ɑ", 0.1, 0.2), Phoneme("t", 0.2, 0.3)], 0.3)
    assert levels[5] < levels[25] < levels[15] and len(levels) == 30


@pytest.mark.parametrize("delay_s", [-0.2, 0.0, 0.08, 0.33])
def test_the_delay_of_the_sound_is_measured(delay_s: float) -> None:
    assert sound_delay_s(PHONEMES, spoken(delay_s), RATE) == pytest.approx(delay_s, abs=0.015)


def test_sound_that_is_80_ms_late_is_two_frames_late() -> None:
    delay_s = sound_delay_s(PHONEMES, spoken(0.08), RATE)
    found = offset_by_phonemes(OPENING, OPENING, delay_s, FPS)
    assert found.frames == pytest.approx(2, abs=0.3) and found.sure


def test_lips_that_are_late_make_the_sound_early() -> None:
    found = offset_by_phonemes(OPENING, np.roll(OPENING, 3), 0.0, FPS)
    assert found.frames == pytest.approx(-3, abs=0.2) and found.lips.best_lag == 3


@pytest.mark.parametrize("late_frames", [-2, 0, 2])
def test_without_phonemes_the_offset_is_measured_by_loudness(late_frames: int) -> None:
    levels = levels_db(spoken(late_frames / FPS), RATE, FPS, FRAMES)
    found = offset_by_loudness(levels, OPENING, FPS)
    assert found.sure and found.frames == pytest.approx(late_frames, abs=0.8)


def test_unrelated_lips_give_no_sure_offset() -> None:
    random = np.random.default_rng(3).normal(size=FRAMES)
    assert not offset_by_phonemes(OPENING, random, 0.0, FPS).sure


def test_a_short_clip_counts_as_on_time() -> None:
    assert sound_delay_s(PHONEMES[:5], spoken()[:RATE], RATE) == 0
