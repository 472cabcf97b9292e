"""The lip measurements of `make bench-embedded`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.lip_reader import ClipReading, LipMeasures, closures, follow, vowel_order

CLOSURES = (20, 50)
SILENT = np.arange(100) >= 80


def opening() -> np.ndarray:
    """A mouth that moves between 0.2 and 1, closed at the closures and in silence."""
    gap = 0.6 + 0.4 * np.sin(np.arange(100) / 3.0)
    gap[[*CLOSURES, *np.flatnonzero(SILENT)]] = 0
    return gap


def clip(made: np.ndarray, truth: np.ndarray | None = None) -> ClipReading:
    truth = opening() if truth is None else truth
    return ClipReading(LipMeasures(truth, truth), LipMeasures(made, made), CLOSURES, SILENT)


def test_an_identical_mouth_has_no_error() -> None:
    numbers = follow([clip(opening())])
    assert numbers["r"] == pytest.approx(1) and numbers["amplitude"] == pytest.approx(1)
    assert numbers["best_lag_frames"] == 0 and numbers["frames"] == 100


def test_delay_and_amplitude_of_a_mouth_are_measured() -> None:
    numbers = follow([clip(0.8 * np.roll(opening(), 2))])
    assert numbers["best_lag_frames"] == 2 and numbers["amplitude"] == pytest.approx(0.8)
    assert numbers["r_worst_clip"] == numbers["r"] < 0.9


def test_the_worst_clip_is_reported() -> None:
    numbers = follow([clip(opening()), clip(np.roll(opening(), 3))])
    assert numbers["r_worst_clip"] < 0.8 < numbers["r"] + 0.2


def test_closures_are_compared_with_other_frames() -> None:
    numbers = closures([clip(opening())])
    assert numbers["closed_at_pbm"] == numbers["closed_at_pbm_exactly"] == numbers["closed_in_silence"] == 1
    assert numbers["closed_elsewhere"] == 0
    assert closures([clip(np.full(100, 0.5))])["closed_at_pbm"] == 0  # never closes
    assert closures([clip(np.zeros(100))])["closed_elsewhere"] == 1  # never opens


def test_a_closure_may_fall_a_frame_beside_its_sound() -> None:
    numbers = closures([clip(np.roll(opening(), 1))])
    assert numbers["closed_at_pbm"] == 1 and numbers["closed_at_pbm_exactly"] == 0


def test_vowels_are_distinguished_by_mouth_width() -> None:
    width = np.linspace(0, 1, 10)
    reading = ClipReading(
        LipMeasures(width, width), LipMeasures(width, width), (), np.zeros(10, bool), {"u": [1], "ɑ": [4], "i": [8, 9]}
    )
    assert vowel_order([reading]) == {"vowels_told_apart": 1.0, "vowel_pairs": 5, "vowels": 4}
    backwards = ClipReading(reading.truth, LipMeasures(width, width[::-1]), (), reading.silent, reading.vowels)
    assert vowel_order([backwards])["vowels_told_apart"] == 0
