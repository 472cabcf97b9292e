"""Measures by how many pixels a region of a stabilised crop jitters, with sub-pixel image registration.

Landmarks read from coded video jitter by 0.24 to 0.35 px themselves. Registering a region as a whole, from the
gradients of all its pixels (Lucas and Kanade 1981), is ten times more precise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import UInt8

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

BLUR_PX = 1.2  # before the gradients: H.264's noise is finer than a face's features
ROUNDS = 6  # of Gauss-Newton
SETTLED_PX = 2e-3  # step below which it stops
OUTLIER = 3.0  # times the median residual, beyond which pixels (a blink, a highlight) weigh less
MIN_PIXELS = 64  # of a region, for a measurement
SECOND_DIFFERENCE = np.sqrt(1.0 + 4.0 + 1.0)  # deviation of white noise's second difference over the noise's own


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A region of grey crops: its bounding box with a margin (rows, columns), and its mask inside the box."""

    rows: slice
    columns: slice
    inside: Bool

    @classmethod
    def of(cls, region: Bool, margin_px: int = 8) -> Patch:
        """Return the patch of a region `(h, w)` that is not empty."""
        y, x = np.nonzero(region)
        rows = slice(max(0, int(y.min()) - margin_px), int(y.max()) + margin_px + 1)
        columns = slice(max(0, int(x.min()) - margin_px), int(x.max()) + margin_px + 1)
        return cls(rows, columns, region[rows, columns])

    def cut(self, crop: UInt8) -> Float32:
        """Return the bounding box of an RGB crop, grey and blurred."""
        grey = cv2.cvtColor(np.ascontiguousarray(crop[self.rows, self.columns]), cv2.COLOR_RGB2GRAY)
        return cast(Float32, cv2.GaussianBlur(grey.astype(np.float32), (0, 0), BLUR_PX))


def shift_between(before: Float32, after: Float32, inside: Bool) -> Float64:
    """Return by how many px (x, y) the picture in `inside` moves from `before` to `after`, all `(h, w)`."""
    moved = np.zeros(2)
    for _ in range(ROUNDS):
        there = _moved(after, moved)
        middle = (before + there) / 2  # gradients of the mean make the step exact to second order
        across, down = cv2.Scharr(middle, cv2.CV_32F, 1, 0) / 32, cv2.Scharr(middle, cv2.CV_32F, 0, 1) / 32
        slope = np.stack([across[inside], down[inside], np.ones(int(inside.sum()), np.float32)], 1)  # ones: brightness
        residual = (there - before)[inside]
        weight = 1 / (1 + (residual / (OUTLIER * np.median(np.abs(residual)) + 1e-3)) ** 2)
        weighted = slope * weight[:, None]
        step = np.linalg.lstsq(weighted.T @ slope, -(weighted.T @ residual), rcond=1e-6)[0][:2]
        moved += np.clip(step, -2, 2)
        if np.abs(step).max() < SETTLED_PX:
            break
    return cast(Float64, moved)


def _moved(picture: Float32, shift: Float64) -> Float32:
    """The picture with its content moved back by `shift` (x, y)."""
    if not shift.any():
        return picture
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP  # cv2's cubic shifts a slope by up to 0.04 px, its linear does not
    size = picture.shape[1], picture.shape[0]
    return cast(Float32, cv2.warpAffine(picture, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))


def shifts(crops: UInt8, region: Bool) -> Float64:
    """Return the shift of a region from each crop to the next, `(n - 1, 2)` px as x, y; zeros for a tiny region.

    crops: RGB uint8 `(n, h, w, 3)`.
    """
    if region.sum() < MIN_PIXELS:
        return np.zeros((len(crops) - 1, 2))
    patch = Patch.of(region)
    cuts = [patch.cut(crop) for crop in crops]
    return np.stack([shift_between(a, b, patch.inside) for a, b in pairwise(cuts)])


def jitter(moves: npt.NDArray[Any]) -> Float64:
    """Return the jitter `(n - 1,)` px of each frame between the first and the last, from moves `(n, 2)` between frames.

    The magnitude of the position's second difference over √6: steady motion counts 0, and for white noise the rms over
    all frames equals the noise's.
    """
    return cast(Float64, np.linalg.norm(np.diff(moves, axis=0), axis=1) / SECOND_DIFFERENCE)


def rms(values: npt.NDArray[Any]) -> float:
    """Return the root mean square; 0 for no values."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def percentile_95(values: npt.NDArray[Any]) -> float:
    """Return the 95th percentile; 0 for no values."""
    return float(np.percentile(values, 95)) if len(values) else 0.0
