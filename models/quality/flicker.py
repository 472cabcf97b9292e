"""Measures how much a region changes from frame to frame: first and second differences of its grey levels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from models.types import UInt8

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

FLOOR = 0.05  # grey levels, far below H.264's noise: keeps the ratio of two still pictures at 1


@dataclass(frozen=True, slots=True, eq=False)
class Flicker:
    """Mean absolute differences in grey levels.

    first: `(n - 1,)`, of each frame to the next. second: `(n - 2,)`, second differences: a steady change counts 0.
    """

    first: Float64
    second: Float64


def greys(crops: UInt8) -> npt.NDArray[np.int16]:
    """Convert RGB uint8 `(n, h, w, 3)` to grey levels int16 `(n, h, w)`, which can be subtracted."""
    return np.stack([cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in crops]).astype(np.int16)


def flicker(grey: npt.NDArray[np.int16], region: Bool) -> Flicker:
    """Measure a region `(h, w)` of grey crops `(n, h, w)`; zeros for an empty region."""
    inside = grey[:, region]  # (n, m)
    if not inside.size:
        return Flicker(np.zeros(max(0, len(grey) - 1)), np.zeros(max(0, len(grey) - 2)))
    first = np.diff(inside, axis=0)
    return Flicker(np.abs(first).mean(1), np.abs(np.diff(first, axis=0)).mean(1))


def ratio(made: Float64, source: Float64) -> float:
    """Return the mean of `made` over the mean of `source`; 1 where either is empty."""
    return float((made.mean() + FLOOR) / (source.mean() + FLOOR)) if len(made) and len(source) else 1.0
