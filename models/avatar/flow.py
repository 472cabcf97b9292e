"""Measures how the rigid part of a face moves from one frame to the next, with Lucas-Kanade optical flow.

Features lie between the brows, the temples and the base of the nose: never on lips, jaw, lids, brows or the background.
A feature tracked forward must return when tracked backward (Kalal et al. 2010), and the features must agree on one
similarity (RANSAC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.geometry import apply, as_complex, fit_similarity, similarity_matrix
from models.types import Float32, UInt8

Float64 = npt.NDArray[np.float64]

MAX_FACE_PX = 400.0  # a larger face is tracked in a reduced picture: its features are not sharper
MARGIN = 0.3  # face sizes: border around the landmarks in which pixels are used
MAX_FEATURES = 160
MIN_FEATURES = 8
QUALITY = 0.01  # relative to the strongest corner, see cv2.goodFeaturesToTrack
SPACING = 0.018  # face sizes between two features
WINDOW = 0.07  # face sizes: side of the compared patch
LEVELS = 2  # of the pyramid; few are enough, because the landmarks give the first guess
RETURN_PX = 0.15  # a feature that returns farther from its start is dropped
RANSAC_PX = 0.5
EXPOSURE = 0.08  # relative change of brightness above which it is compensated first
EYES = (slice(36, 42), slice(42, 48))
BROWS = (slice(17, 22), slice(22, 27))
OUTLINE = (1, 0, 17, 19, 24, 26, 16, 15, 35, 33, 31)  # iBUG, around the rigid region
INSIDE = 0.9  # scale of the region about its centre, to keep away from hair and background
LID = 0.25  # of an eye's width: the skin this near to eye and brow moves


@dataclass(frozen=True, slots=True)
class Motion:
    """A similarity from the frame before to this one, z → factor · z + shift, for px as complex numbers x + iy.

    share: of the features that agree with it. noise_px: their rms residual per coordinate. count: the number of
    independent features (overlapping windows have correlated errors). middle, spread_px: their mean position in the
    frame before, and their rms distance from it.
    """

    factor: complex
    shift: complex
    share: float
    noise_px: float
    count: float
    middle: complex
    spread_px: float

    def variance_at(self, place: complex) -> float:
        """Return the variance of the moved `place` per coordinate, px²."""
        return self.noise_px**2 / self.count + self.turn_variance * abs(place - self.middle) ** 2

    @property
    def turn_variance(self) -> float:
        """Variance of the angle in rad², and of the logarithm of the scale."""
        return self.noise_px**2 / (self.count * self.spread_px**2)


class FaceFlow:
    """Measures one face's motion through a video, frame by frame; keeps one frame. Not thread-safe."""

    def __init__(self) -> None:
        self._frame: UInt8 | None = None
        self._landmarks: Float64 | None = None

    def step(self, frame: UInt8, landmarks: Float32 | None) -> Motion | None:
        """Take the next frame `(h, w, 3)` and the face's landmarks `(68, 2)` in it (None without a face).

        Returns the motion since the frame before; None where either has no face or too few features agree.
        Deterministic.
        """
        before, points = self._frame, self._landmarks
        self._frame = None if landmarks is None else frame
        self._landmarks = None if landmarks is None else landmarks.astype(np.float64)
        if before is None or points is None or self._landmarks is None:
            return None
        return _motion(before, frame, points, self._landmarks)


def _motion(before: UInt8, frame: UInt8, points: Float64, moved: Float64) -> Motion | None:
    """The motion between two frames; their landmarks give the region and the first guess."""
    # 1. the same rectangle of both frames, grey, scaled to a face of at most MAX_FACE_PX
    size = float(np.ptp(points, axis=0).max())
    low = np.floor(np.minimum(points.min(0), moved.min(0)) - MARGIN * size).astype(int)
    high = np.ceil(np.maximum(points.max(0), moved.max(0)) + MARGIN * size).astype(int)
    (x1, y1), (x2, y2) = np.maximum(low, 0), np.minimum(high, before.shape[1::-1])
    if x2 - x1 < 32 or y2 - y1 < 32 or size < 16:
        return None
    scale = min(1.0, MAX_FACE_PX / size)
    first, second = (_grey(image[y1:y2, x1:x2], scale) for image in (before, frame))
    corner = np.array([x1, y1])
    inside = (points - corner + 0.5) * scale - 0.5
    guess = similarity_matrix(*fit_similarity(as_complex(points), as_complex(moved)))
    # 2. features, tracked forward and backward
    region, side = rigid_region(inside, first.shape), max(9, round(WINDOW * size * scale) | 1)
    there_region = rigid_region((moved - corner + 0.5) * scale - 0.5, first.shape)
    second = _equal_brightness(second, there_region, first, region)
    seeds = cv2.goodFeaturesToTrack(
        first, MAX_FEATURES, QUALITY, max(2.0, SPACING * size * scale), mask=region, blockSize=3
    )
    if seeds is None or len(seeds) < MIN_FEATURES:
        return None
    start = cast(Float32, seeds.reshape(-1, 2))
    expected = ((apply(guess, (start + 0.5) / scale - 0.5 + corner) - corner + 0.5) * scale - 0.5).astype(np.float32)
    there, kept = _forward_backward(first, second, start, expected, side)
    if kept.sum() < MIN_FEATURES:
        return None
    # 3. the features that agree on one similarity, and that similarity in frame px
    source, target = ((p[kept].astype(np.float64) + 0.5) / scale - 0.5 + corner for p in (start, there))
    _, agree = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=RANSAC_PX / scale, maxIters=500, confidence=0.999
    )
    if agree is None or agree.sum() < MIN_FEATURES:
        return None
    chosen = agree.ravel() > 0
    patches = float(np.count_nonzero(region)) / side**2
    return _fitted(source[chosen], target[chosen], float(chosen.sum()) / len(start), patches)


def _forward_backward(
    first: UInt8, second: UInt8, start: Float32, expected: Float32, side: int
) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Positions of the features `(n, 2)` in the second picture, and a mask of those that return to their start."""
    settings: dict[str, Any] = {
        "winSize": (side, side),
        "maxLevel": LEVELS,
        "criteria": (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.003),
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
    }
    there, found, _ = cv2.calcOpticalFlowPyrLK(first, second, start, expected.copy(), **settings)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(second, first, there, (start + there - expected).copy(), **settings)
    near = np.abs(back - start).max(1) < RETURN_PX
    return cast(Float32, there), (found.ravel() > 0) & (returned.ravel() > 0) & near


def _fitted(source: Float64, target: Float64, share: float, patches: float) -> Motion:
    """Least-squares fit and its noise. patches: how many windows fit into the region without overlap."""
    z, w = as_complex(source), as_complex(target)
    middle, spread = z.mean(), float(np.sqrt((np.abs(z - z.mean()) ** 2).mean()))
    factor, shift = (complex(value) for value in fit_similarity(z, w))
    residual = factor * z + shift - w
    noise = float(np.sqrt((np.abs(residual) ** 2).sum() / (2 * len(z) - 4)))
    count = max(1.0, min(float(len(z)), share * patches))
    return Motion(factor, shift, share, noise, count, complex(middle), spread)


def rigid_region(points: Float64, shape: tuple[int, ...]) -> UInt8:
    """Return the mask 0/255 `(h, w)` in which features may lie; landmarks `(68, 2)` in px of a picture of `shape`."""
    mask = np.zeros(shape[:2], np.uint8)
    width = float(np.mean([np.linalg.norm(points[group][3] - points[group][0]) for group in EYES]))
    outline = points[list(OUTLINE)]
    outline = outline.mean(0) + INSIDE * (outline - outline.mean(0))
    cv2.fillPoly(mask, [_whole(outline)], 255, cv2.LINE_8, 4)
    for eye, brow in zip(EYES, BROWS, strict=True):
        around = cv2.convexHull(np.concatenate([points[eye], points[brow]]).astype(np.float32))[:, 0]
        cv2.fillPoly(mask, [_whole(around)], 0, cv2.LINE_8, 4)
        cv2.polylines(mask, [_whole(around)], True, 0, max(1, round(2 * LID * width)), cv2.LINE_8, 4)
    return mask


def _grey(image: UInt8, scale: float) -> UInt8:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        size = round(grey.shape[1] * scale), round(grey.shape[0] * scale)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return cast(UInt8, grey)


def _equal_brightness(picture: UInt8, region: UInt8, like: UInt8, like_region: UInt8) -> UInt8:
    """The picture with its face as bright as in `like`: optical flow would read a flash as motion."""
    gain = cv2.mean(like, mask=like_region)[0] / max(1.0, cv2.mean(picture, mask=region)[0])
    return picture if abs(gain - 1) < EXPOSURE else cast(UInt8, cv2.convertScaleAbs(picture, alpha=gain))


def _whole(points: Float64) -> npt.NDArray[np.int32]:
    """Sixteenths of a px, for cv2's drawing functions with shift 4."""
    return cast(npt.NDArray[np.int32], np.rint(points * 16).astype(np.int32))
