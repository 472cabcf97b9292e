"""models.quality.lips and closures: correlation, lag and closures of known curves."""

from __future__ import annotations

import numpy as np
import pytest

from models.quality.closures import closed_at, closed_below, controls
from models.quality.lips import correlate_lags, fill, lip_measures, pearson

SPEECH = np.random.default_rng(4).normal(size=200).cumsum()
SPEECH = np.convolve(SPEECH - np.convolve(SPEECH, np.ones(15) / 15, "same"), [0.25, 0.5, 0.25], "same")


def test_a_copy_has_lag_zero() -> None:
    found = correlate_lags(SPEECH, 0.3 * SPEECH + 2)
    assert found.r == pytest.approx(1) and found.best_lag == 0 and found.lag == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("late", [-3, -1, 2, 4])
def test_a_shift_is_found_with_its_sign(late: int) -> None:
    found = correlate_lags(SPEECH, np.roll(SPEECH, late))
    assert found.best_lag == late and found.best_r > 0.99 > found.r


def test_a_lag_of_half_a_frame_is_measured() -> None:
    fine = np.interp(np.arange(0, 200, 0.5), np.arange(200), SPEECH)
    half_late = np.interp(np.arange(200) - 0.5, np.arange(0, 200, 0.5), fine)
    assert correlate_lags(SPEECH, half_late).lag == pytest.approx(0.5, abs=0.15)


def test_a_constant_curve_has_no_correlation() -> None:
    assert pearson(SPEECH, np.ones(200)) == 0 and correlate_lags(SPEECH, np.ones(200)).r == 0


def test_frames_without_a_face_are_interpolated() -> None:
    assert fill(np.array([np.nan, 1, np.nan, 3, np.nan])).tolist() == [1, 1, 2, 3, 3]
    holes = SPEECH.copy()
    holes[50:53] = np.nan
    assert correlate_lags(SPEECH, holes).r > 0.97


def test_the_gap_is_measured_in_eye_distances() -> None:
    mesh = np.zeros((2, 468, 2))
    mesh[:, 33], mesh[:, 263] = (0, 0), (100, 0)
    mesh[:, [14, 87, 317], 1] = 12.0  # upper lips stay at y = 0
    mesh[:, 61], mesh[:, 291] = (20, 60), (70, 60)
    mouth = lip_measures(mesh * 3)
    assert mouth.gap == pytest.approx([0.12, 0.12]) and mouth.width == pytest.approx([0.5, 0.5])


def test_closures_are_found_in_their_frame_or_beside_it() -> None:
    silent = np.arange(100) >= 80
    gap = np.where(silent, 0.02, 0.5)
    gap[[10, 31, 60]] = 0.03
    below = closed_below(gap, silent)
    assert 0.02 < below < 0.1
    assert closed_at(gap, (10, 30, 61, 50), below).tolist() == [True, True, True, False]


def test_closures_are_found_without_silence_too() -> None:
    gap = np.where(np.arange(100) % 5 == 0, 0.05, 0.6)
    assert 0.05 < closed_below(gap, np.zeros(100, bool)) < 0.15


def test_controls_are_not_near_closures_silence_and_ends() -> None:
    assert controls(20, (10,), np.arange(20) >= 15) == [2, 3, 4, 5, 6, 7, 13, 14]
