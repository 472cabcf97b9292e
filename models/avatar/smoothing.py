"""Smooths what was measured a frame: without lag, or causally. Knows no faces and no pictures.

A smoother takes series `(n, c)`, weights `(n,)` (1 where it was measured, near 0 where it was interpolated) and the
frame rate, and never looks across a cut: `smooth_scenes` hands it one scene at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError

Float64 = npt.NDArray[np.float64]

SMOOTHINGS = ("zero_phase", "one_euro", "kalman", "none")
SMOOTH_S = 0.08  # standard deviation of the zero-phase kernel: 1 px of landmark noise leaves less than 0.15 px
MIN_CUTOFF_HZ, BETA, D_CUTOFF_HZ = 1.0, 0.7, 1.0  # One-Euro's, for series in px: lag against jitter, see Smoothing
HEAD_ACCELERATION = 120.0  # px/s², of a face of 160 px: what the Kalman filter expects of a head


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How series are smoothed. Raises ConfigError for a name or a value that does not exist.

    name: `zero_phase` looks at past and future: no lag. `one_euro` and `kalman` look at the past alone, as a live
    source must. `none` leaves all as it is. sigma_s: zero phase's standard deviation. min_cutoff, d_cutoff (Hz) and
    beta: One-Euro's (Casiez, Roussel and Vogel 2012): a smaller min_cutoff trembles less and lags more while still, a
    larger beta lags less while moving (Hz for each px/s), d_cutoff smooths the speed that beta looks at.
    """

    name: str = "zero_phase"
    sigma_s: float = SMOOTH_S
    min_cutoff: float = MIN_CUTOFF_HZ
    beta: float = BETA
    d_cutoff: float = D_CUTOFF_HZ

    def __post_init__(self) -> None:
        if self.name not in SMOOTHINGS:
            raise ConfigError(f"There is no smoothing {self.name!r}.", f"Use one of {', '.join(SMOOTHINGS)}.")
        if min(self.min_cutoff, self.d_cutoff) <= 0 or min(self.beta, self.sigma_s) < 0:
            raise ConfigError("A cutoff of the smoothing is not above 0.", "Use min_cutoff 1, beta 0.7, d_cutoff 1.")

    @property
    def causal(self) -> bool:
        return self.name in ("one_euro", "kalman")


def smooth_scenes(
    series: Float64, weights: Float64, scenes: Sequence[slice], fps: float, how: Smoothing, noise: Float64
) -> Float64:
    """Smooth `(n, c)`, each scene by itself. noise `(c,)`: standard deviation of one measurement, for `kalman`."""
    out = np.empty_like(series)
    for scene in scenes:
        part, weight = series[scene], weights[scene]
        if how.name == "zero_phase":
            out[scene] = smooth(part, weight, how.sigma_s * fps)
        elif how.name == "one_euro":
            out[scene] = one_euro(part, fps, how.min_cutoff, how.beta, how.d_cutoff)
        elif how.name == "kalman":
            out[scene] = kalman(part, weight, fps, noise)
        else:
            out[scene] = part
    return out


def smooth(series: Float64, weights: Float64, sigma: float) -> Float64:
    """Smooth `(n, c)` over time without lag: at each frame the value of a parabola fitted to its neighbours.

    Neighbours weigh by `weights` (n,) and by a Gaussian of `sigma` frames. A parabola keeps motion that a moving
    average flattens, and ends need no padding. sigma 0 returns the series as it is. (Savitzky and Golay 1964, Cleveland
    1979.)
    """
    n = len(series)
    if sigma <= 0 or n < 2:
        return series.copy()
    reach = int(np.ceil(4 * sigma))
    out = np.empty_like(series)
    for k in range(n):
        low, high = max(0, k - reach), min(n, k + reach + 1)
        t = (np.arange(low, high) - k) / sigma
        weight = weights[low:high] * np.exp(-0.5 * t * t)
        powers = np.stack([np.ones_like(t), t, t * t], 1)[:, : min(3, high - low)]
        scaled = powers * np.sqrt(weight)[:, None]
        fit, *_ = np.linalg.lstsq(scaled, series[low:high] * np.sqrt(weight)[:, None], rcond=None)
        out[k] = fit[0]
    return out


def one_euro(series: Float64, fps: float, min_cutoff: float, beta: float, d_cutoff: float) -> Float64:
    """The 1 € filter (Casiez, Roussel and Vogel, CHI 2012, algorithms 1 to 3) on `(n, c)`, each column by itself.

    An exponential low-pass whose cutoff is min_cutoff + beta · |speed|, the speed itself low-passed at d_cutoff.
    """
    out, speed = series.copy(), np.zeros(series.shape[1])
    for k in range(1, len(series)):
        share = _alpha(np.array(d_cutoff), fps)
        speed = share * (series[k] - series[k - 1]) * fps + (1 - share) * speed
        share = _alpha(min_cutoff + beta * np.abs(speed), fps)
        out[k] = share * series[k] + (1 - share) * out[k - 1]
    return out


def kalman(series: Float64, weights: Float64, fps: float, noise: Float64) -> Float64:
    """A Kalman filter of constant velocity on `(n, c)` in px: the past alone, each column by itself.

    noise: standard deviation of a measurement `(c,)`; a measurement of weight w has noise / √w. The head's acceleration
    is white with HEAD_ACCELERATION.
    """
    step = 1 / fps
    move = np.array([[1, step], [0, 1]])
    push = HEAD_ACCELERATION**2 * np.array([[step**4 / 4, step**3 / 2], [step**3 / 2, step**2]])
    out = np.empty_like(series)
    for column in range(series.shape[1]):
        measured = max(float(noise[column]), 1e-6) ** 2
        state = np.array([series[0, column], 0.0])
        cover = np.diag([measured, HEAD_ACCELERATION**2])  # at first its speed is not known
        out[0, column] = state[0]
        for k in range(1, len(series)):
            state, cover = move @ state, move @ cover @ move.T + push
            gain = cover[:, 0] / (cover[0, 0] + measured / max(weights[k], 1e-9))
            state = state + gain * (series[k, column] - state[0])
            cover = cover - np.outer(gain, cover[0])
            out[k, column] = state[0]
    return out


def white_noise(series: Float64, scenes: Sequence[slice]) -> Float64:
    """Standard deviation `(c,)` of independent noise in smooth series `(n, c)`, from their second differences.

    Robust: 1.4826 · the median of their magnitudes, over √6.
    """
    parts = [np.diff(series[scene], 2, axis=0) for scene in scenes if scene.stop - scene.start > 2]
    if not parts:
        return np.zeros(series.shape[1])
    spread: Float64 = 1.4826 * np.median(np.abs(np.concatenate(parts)), axis=0) / math.sqrt(6)
    return spread


def _alpha(cutoff_hz: Float64, fps: float) -> Float64:
    """The weight of the newest value in an exponential low-pass of that cutoff."""
    time_s = 1 / (2 * math.pi * cutoff_hz)
    share: Float64 = 1 / (1 + time_s * fps)
    return share
