"""Smooths series measured per frame: without lag, or causally.

A smoother takes series `(n, c)`, weights `(n,)` (1 where a value was measured, near 0 where it was interpolated) and
the frame rate. `smooth_scenes` calls it per scene, so that nothing is smoothed across a cut.
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
SMOOTH_S = 0.08  # standard deviation of the zero-phase kernel: reduces 1 px of landmark noise to less than 0.15 px
MIN_CUTOFF_HZ, BETA, D_CUTOFF_HZ = 1.0, 0.7, 1.0  # One-Euro's, for series in px: see Smoothing
HEAD_ACCELERATION = 120.0  # px/s², standard deviation of a head's acceleration in the Kalman filter (face of 160 px)


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How series are smoothed. Raises ConfigError for an unknown name or a value out of range.

    name: `zero_phase` uses past and future and has no lag. `one_euro` and `kalman` use only the past, as needed for a
    live source. `none` changes nothing. sigma_s: standard deviation of `zero_phase`. min_cutoff, d_cutoff (Hz), beta
    (Hz per px/s): One-Euro's (Casiez, Roussel and Vogel 2012). A smaller min_cutoff jitters less and lags more at
    rest; a larger beta lags less in motion; d_cutoff smooths the speed that beta is multiplied with.
    """

    name: str = "zero_phase"
    sigma_s: float = SMOOTH_S
    min_cutoff: float = MIN_CUTOFF_HZ
    beta: float = BETA
    d_cutoff: float = D_CUTOFF_HZ

    def __post_init__(self) -> None:
        if self.name not in SMOOTHINGS:
            raise ConfigError(f"Unknown smoothing {self.name!r}.", f"Use one of {', '.join(SMOOTHINGS)}.")
        if min(self.min_cutoff, self.d_cutoff) <= 0 or min(self.beta, self.sigma_s) < 0:
            raise ConfigError(
                f"min_cutoff {self.min_cutoff:g} and d_cutoff {self.d_cutoff:g} must be above 0, beta {self.beta:g} "
                f"and smooth_s {self.sigma_s:g} not below 0.",
                "Use for example min_cutoff 1, d_cutoff 1, beta 0.7.",
            )

    @property
    def causal(self) -> bool:
        return self.name in ("one_euro", "kalman")


def smooth_scenes(
    series: Float64, weights: Float64, scenes: Sequence[slice], fps: float, how: Smoothing, noise: Float64
) -> Float64:
    """Smooth series `(n, c)` per scene. noise: standard deviation of a measurement `(c,)`, for `kalman`."""
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
    """Smooth series `(n, c)` without lag: the value at each frame of a parabola fitted to its neighbours.

    Neighbours are weighted by `weights` (n,) and by a Gaussian of `sigma` frames. A parabola keeps motion that a moving
    average would flatten, and needs no padding at the ends. sigma 0 returns a copy. (Savitzky and Golay 1964, Cleveland
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
    """Apply the 1 € filter (Casiez, Roussel and Vogel, CHI 2012, algorithms 1 to 3) to each column of `(n, c)`.

    An exponential low-pass with the cutoff min_cutoff + beta · |speed|; the speed is low-passed at d_cutoff.
    """
    out, speed = series.copy(), np.zeros(series.shape[1])
    for k in range(1, len(series)):
        share = _alpha(np.array(d_cutoff), fps)
        speed = share * (series[k] - series[k - 1]) * fps + (1 - share) * speed
        share = _alpha(min_cutoff + beta * np.abs(speed), fps)
        out[k] = share * series[k] + (1 - share) * out[k - 1]
    return out


def kalman(series: Float64, weights: Float64, fps: float, noise: Float64) -> Float64:
    """Apply a constant-velocity Kalman filter to each column of `(n, c)` in px, using only the past.

    noise: standard deviation of a measurement `(c,)`; a measurement of weight w has noise / √w. The acceleration is
    white noise of HEAD_ACCELERATION.
    """
    step = 1 / fps
    move = np.array([[1, step], [0, 1]])
    push = HEAD_ACCELERATION**2 * np.array([[step**4 / 4, step**3 / 2], [step**3 / 2, step**2]])
    out = np.empty_like(series)
    for column in range(series.shape[1]):
        measured = max(float(noise[column]), 1e-6) ** 2
        state = np.array([series[0, column], 0.0])
        covariance = np.diag([measured, HEAD_ACCELERATION**2])  # the initial speed is not known
        out[0, column] = state[0]
        for k in range(1, len(series)):
            state, covariance = move @ state, move @ covariance @ move.T + push
            gain = covariance[:, 0] / (covariance[0, 0] + measured / max(weights[k], 1e-9))
            state = state + gain * (series[k, column] - state[0])
            covariance = covariance - np.outer(gain, covariance[0])
            out[k, column] = state[0]
    return out


def white_noise(series: Float64, scenes: Sequence[slice]) -> Float64:
    """Estimate the standard deviation `(c,)` of white noise in smooth series `(n, c)` from their second differences.

    Robust: 1.4826 · median of their magnitudes / √6.
    """
    parts = [np.diff(series[scene], 2, axis=0) for scene in scenes if scene.stop - scene.start > 2]
    if not parts:
        return np.zeros(series.shape[1])
    spread: Float64 = 1.4826 * np.median(np.abs(np.concatenate(parts)), axis=0) / math.sqrt(6)
    return spread


def _alpha(cutoff_hz: Float64, fps: float) -> Float64:
    """The weight of the newest value in an exponential low-pass with this cutoff."""
    time_s = 1 / (2 * math.pi * cutoff_hz)
    share: Float64 = 1 / (1 + time_s * fps)
    return share
