"""Reads mouths from pictures with FaceMesh, and compares how they open with how they should."""

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

INNER_LIPS = ((13, 14), (82, 87), (312, 317))  # FaceMesh points above and below each other, middle and either side
CORNERS = (61, 291)
OUTER_EYES = (33, 263)  # their distance is the unit: it does not depend on the jaw
EDGE_FRAMES = 4  # left out at either end of a clip when lags are compared: so far a lag may reach


@dataclass(frozen=True, slots=True, eq=False)
class LipMeasures:
    """What FaceMesh sees of a clip: inner-lip gap and mouth width of each frame, `(n,)`, over the eyes' distance."""

    gap: Float64
    width: Float64


@dataclass(frozen=True, slots=True)
class LagCorrelation:
    """How one curve follows another: Pearson's r as they are, the best r, and the lag of that, whole frames, late > 0.

    lag: of the parabola through the best r and its neighbours, in frames.
    """

    r: float
    best_r: float
    best_lag: int
    lag: float


class LipReader:
    """FaceMesh on frames of one avatar. The crop that it reads from is that of the avatar's own frame, for source and
    result alike, so that both are read at the same place."""

    def __init__(self) -> None:
        self._mesh = BlazeMesh()
        self._places: dict[int, Face] = {}

    def place(self, index: int, source: UInt8) -> Face:
        """The face in the avatar's frame `index`."""
        if index not in self._places:
            # without its look: what is shown there in a result is to be read, however different it looks
            self._places[index] = replace(self._mesh.detect(source)[0], appearance=None)
        return self._places[index]

    def read(self, frames: UInt8, places: Sequence[Face]) -> LipMeasures:
        """Frames `(n, h, w, 3)` and where their faces are."""
        meshes = [self._mesh.detect(frame, near=place)[0].mesh for frame, place in zip(frames, places, strict=True)]
        return lip_measures(np.stack(meshes))


def lip_measures(meshes: npt.NDArray[Any]) -> LipMeasures:
    """The mouth in meshes `(n, 468, 2)`; NaN where a mesh is NaN."""
    eyes = _distance(meshes, OUTER_EYES)
    gap = np.mean([_distance(meshes, pair) for pair in INNER_LIPS], axis=0) / eyes
    return LipMeasures(gap, _distance(meshes, CORNERS) / eyes)


def _distance(meshes: npt.NDArray[Any], pair: tuple[int, int]) -> Float64:
    points = meshes.astype(np.float64)
    distance: Float64 = np.linalg.norm(points[:, pair[0]] - points[:, pair[1]], axis=-1)
    return distance


def pearson(a: Float64, b: Float64) -> float:
    """Pearson's r; 0 where one of them does not move at all."""
    if a.std() < 1e-12 or b.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def correlate_lags(expected: Float64, seen: Float64, reach: int = EDGE_FRAMES) -> LagCorrelation:
    """How `seen` (n,) follows `expected` (n,), at lags up to `reach` frames to either side. NaN in `seen` is left out.

    All lags are compared over the same frames of `expected`. n must exceed 4 · reach.
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
    """Where a parabola through three points has its top, from `at`; 0 at an end."""
    if not 0 < at < len(curve) - 1:
        return 0.0
    left, middle, right = curve[at - 1 : at + 2]
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))


def fill(values: Float64) -> Float64:
    """Values `(n,)` with NaN replaced by what lies between its neighbours; zeros where nothing was seen."""
    seen = np.flatnonzero(~np.isnan(values))
    if not len(seen):
        return np.zeros_like(values)
    return np.interp(np.arange(len(values)), seen, values[seen])
