"""Measures mouths in pictures with FaceMesh, and correlates their opening with the expected one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.avatar.detect import BlazeMesh
from models.avatar.face import Face
from models.types import UInt8

Float64 = npt.NDArray[np.float64]

INNER_LIPS = ((13, 14), (82, 87), (312, 317))  # pairs of FaceMesh points, upper and lower: middle, and to either side
CORNERS = (61, 291)
OUTER_EYES = (33, 263)  # their distance is the unit: it does not depend on the jaw
MAX_LAG_FRAMES = 4  # default of the largest lag; as many frames at both ends of a clip are not compared


@dataclass(frozen=True, slots=True, eq=False)
class LipMeasures:
    """Inner-lip gap and mouth width of each frame of a clip, `(n,)`, relative to the eyes' distance."""

    gap: Float64
    width: Float64


@dataclass(frozen=True, slots=True)
class LagCorrelation:
    """The correlation of a measured curve with the expected one.

    r: Pearson's r without a lag. best_r: the highest r of all lags. best_lag: its lag in whole frames; positive: the
    measured curve is late. lag: sub-frame lag, by a parabola through the best r and its neighbours.
    """

    r: float
    best_r: float
    best_lag: int
    lag: float


class LipReader:
    """Reads lips in frames of one avatar with FaceMesh.

    The mesh's input square is that of the avatar's own frame, for both source and result, so both are measured alike.
    """

    def __init__(self) -> None:
        self._mesh = BlazeMesh()
        self._places: dict[int, Face] = {}

    def place(self, index: int, source: UInt8) -> Face:
        """Return the face in the avatar's frame `index`, which is `source`."""
        if index not in self._places:
            # Without its appearance: the face in a result is measured even if it looks different.
            self._places[index] = replace(self._mesh.detect(source)[0], appearance=None)
        return self._places[index]

    def read(self, frames: UInt8, places: Sequence[Face]) -> LipMeasures:
        """Measure the lips in frames `(n, h, w, 3)`; places: their faces in the source."""
        meshes = [self._mesh.detect(frame, near=place)[0].mesh for frame, place in zip(frames, places, strict=True)]
        return lip_measures(np.stack(meshes))


def lip_measures(meshes: npt.NDArray[Any]) -> LipMeasures:
    """Measure the lips in meshes `(n, 468, 2)`; NaN where a mesh is NaN."""
    eyes = _distance(meshes, OUTER_EYES)
    gap = np.mean([_distance(meshes, pair) for pair in INNER_LIPS], axis=0) / eyes
    return LipMeasures(gap, _distance(meshes, CORNERS) / eyes)


def _distance(meshes: npt.NDArray[Any], pair: tuple[int, int]) -> Float64:
    points = meshes.astype(np.float64)
    distance: Float64 = np.linalg.norm(points[:, pair[0]] - points[:, pair[1]], axis=-1)
    return distance


def pearson(a: Float64, b: Float64) -> float:
    """Return Pearson's r; 0 where either curve is constant."""
    if a.std() < 1e-12 or b.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def correlate_lags(expected: Float64, seen: Float64, reach: int = MAX_LAG_FRAMES) -> LagCorrelation:
    """Correlate `seen` (n,) with `expected` (n,) at lags up to `reach` frames to either side.

    NaN in `seen` is interpolated. All lags use the same frames of `expected`. n must be larger than 4 · reach.
    """
    assert len(expected) == len(seen) and len(seen) > 4 * reach, (len(expected), len(seen), reach)
    filled = fill(seen)
    r_of = _lagged(expected, filled, reach)
    lags = range(-reach, reach + 1)
    curve = [r_of(lag) for lag in lags]
    best = int(np.argmax(curve))
    return LagCorrelation(pearson(expected, filled), curve[best], lags[best], lags[best] + _vertex(curve, best))


def _lagged(expected: Float64, seen: Float64, reach: int) -> Callable[[int], float]:
    inner = slice(reach, len(seen) - reach)
    return lambda lag: pearson(expected[inner], seen[reach + lag : len(seen) - reach + lag])


def _vertex(curve: Sequence[float], at: int) -> float:
    """Position of the maximum of the parabola through three points, relative to `at`; 0 at an end."""
    if not 0 < at < len(curve) - 1:
        return 0.0
    left, middle, right = curve[at - 1 : at + 2]
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))


def fill(values: Float64) -> Float64:
    """Return values `(n,)` with NaN interpolated from its neighbours; zeros if all are NaN."""
    seen = np.flatnonzero(~np.isnan(values))
    if not len(seen):
        return np.zeros_like(values)
    return np.interp(np.arange(len(values)), seen, values[seen])
