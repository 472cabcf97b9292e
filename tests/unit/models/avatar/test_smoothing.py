"""models.avatar.smoothing: lag and jitter of each smoother; nothing is smoothed across a cut."""

import math

import numpy as np
import pytest

from models.avatar.smoothing import Smoothing, kalman, one_euro, smooth, smooth_scenes, white_noise
from models.errors import ConfigError

FPS = 25
WHOLE = [slice(0, 500)]


def sway(n: int = 500) -> np.ndarray:
    """A head that sways by ±8 px at 0.5 Hz, `(n, 1)`: up to 25 px/s."""
    return 8 * np.sin(2 * np.pi * 0.5 * np.arange(n) / FPS)[:, None]


def lag_frames(path: np.ndarray, smoothed: np.ndarray) -> float:
    """Lag of a smoothed path in frames: the shift that explains most of its error."""
    speed = np.gradient(path[:, 0])
    return float(((path - smoothed)[:, 0] * speed).sum() / (speed**2).sum())


def smoothed(series: np.ndarray, name: str, **options: float) -> np.ndarray:
    how = Smoothing(name, **options)
    return smooth_scenes(series, np.ones(len(series)), [slice(0, len(series))], FPS, how, white_noise(series, WHOLE))


def test_zero_phase_has_no_lag() -> None:
    assert abs(lag_frames(sway(), smoothed(sway(), "zero_phase"))) < 1e-3


def test_a_parabola_is_kept_to_the_ends() -> None:
    t = np.arange(50.0)
    series = np.stack([3 + t, 0.2 * t * t - t, 0 * t], 1)
    assert np.abs(smooth(series, np.ones(50), 3.0) - series).max() < 1e-8


def test_one_euro_follows_the_published_formula() -> None:
    """A second implementation of Casiez 2012 for one column."""
    series = np.random.default_rng(0).normal(size=(60, 1)).cumsum(0)
    value, speed = series[0, 0], 0.0
    expected = [value]
    for k in range(1, 60):

        def alpha(cutoff: float) -> float:
            return 1 / (1 + FPS / (2 * math.pi * cutoff))

        derivative = (series[k, 0] - series[k - 1, 0]) * FPS
        speed += alpha(1.5) * (derivative - speed)
        value += alpha(0.8 + 0.3 * abs(speed)) * (series[k, 0] - value)
        expected.append(value)
    assert np.abs(one_euro(series, FPS, 0.8, 0.3, 1.5)[:, 0] - expected).max() < 1e-9


def test_the_lag_of_one_euro_and_kalman() -> None:
    """At the defaults, on a swaying head: 0.4 frames (15 ms) for One-Euro, none for Kalman, which models velocity."""
    found = {name: lag_frames(sway(), smoothed(sway(), name)) for name in ("one_euro", "kalman", "none")}
    assert found["one_euro"] == pytest.approx(0.38, abs=0.05)
    assert abs(found["kalman"]) < 0.05
    assert found["none"] == 0
    assert lag_frames(sway(), smoothed(sway(), "one_euro", beta=0.0)) == pytest.approx(3, abs=0.2)  # a fixed 1 Hz


@pytest.mark.parametrize(
    ("name", "jitter_left", "left"), [("zero_phase", 0.1, 0.45), ("one_euro", 0.7, 0.5), ("kalman", 0.55, 0.75)]
)
def test_noise_is_reduced(name: str, jitter_left: float, left: float) -> None:
    """Remaining share of 0.3 px noise: of its jitter on a swaying head, and of its deviation on a still one."""
    noise = np.random.default_rng(1).normal(scale=0.3, size=(500, 1))
    out = smoothed(sway() + noise, name) - sway()
    assert np.diff(out, 2, axis=0).std() < jitter_left * np.diff(noise, 2, axis=0).std()
    assert smoothed(noise, name).std() < left * noise.std()


@pytest.mark.parametrize("name", ["one_euro", "kalman"])
def test_causal_smoothers_do_not_look_ahead(name: str) -> None:
    series = np.random.default_rng(2).normal(size=(80, 2)).cumsum(0)
    changed = series.copy()
    changed[50:] += 40
    how, noise = Smoothing(name), np.full(2, 0.5)
    one, other = (smooth_scenes(s, np.ones(80), [slice(0, 80)], FPS, how, noise) for s in (series, changed))
    assert how.causal and np.array_equal(one[:50], other[:50])
    assert np.abs(one[50:] - other[50:]).max() > 5


@pytest.mark.parametrize("name", ["zero_phase", "one_euro", "kalman"])
def test_nothing_is_smoothed_across_a_cut(name: str) -> None:
    """Two scenes 100 px apart give the same as each scene alone."""
    series = sway(100)
    series[60:] += 100
    how, ones = Smoothing(name), np.ones(100)
    together = smooth_scenes(series, ones, [slice(0, 60), slice(60, 100)], FPS, how, np.ones(1))
    alone = [
        smooth_scenes(part, np.ones(len(part)), [slice(0, len(part))], FPS, how, np.ones(1))
        for part in (series[:60], series[60:])
    ]
    assert np.array_equal(together, np.concatenate(alone))
    across = smooth_scenes(series, ones, [slice(0, 100)], FPS, how, np.ones(1))
    assert np.abs(across - together).max() > 1


def test_kalman_ignores_interpolated_frames() -> None:
    series, weights = sway(200), np.ones(200)
    series[100:104] += 30
    weights[100:104] = 1e-6
    assert np.abs(kalman(series, weights, FPS, np.ones(1)) - sway(200))[20:].max() < 1.5


def test_white_noise_is_estimated_despite_motion() -> None:
    noise = np.random.default_rng(3).normal(scale=0.3, size=(500, 1))
    assert white_noise(sway() + noise, WHOLE)[0] == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("options", [{"name": "median"}, {"min_cutoff": 0.0}, {"beta": -1.0}, {"d_cutoff": -1.0}])
def test_unknown_names_and_values_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        Smoothing(**options)
