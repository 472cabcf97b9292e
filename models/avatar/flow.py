"""How the rigid part of a face moves from one frame to the next, by Lucas and Kanade's tracking. Holds one frame.

Features lie between the brows, the temples and the base of the nose: never on lips, jaw, lids, brows or the background.
What is tracked forth must come back (Kalal et al. 2010), and one similarity must explain it (RANSAC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.geometry import apply
from models.types import Float32, UInt8

Float64 = npt.NDArray[np.float64]

MAX_FACE_PX = 400.0  # a larger face is tracked in a smaller picture: its features are no sharper
REACH = 0.3  # of the face's size: how far outside the rigid region pixels are looked at
MAX_FEATURES = 160
MIN_FEATURES = 8
QUALITY = 0.01  # of the strongest corner, see cv2.goodFeaturesToTrack
SPACING = 0.018  # of the face's size, between two features
WINDOW = 0.07  # of the face's size: side of the patch that is compared
LEVELS = 2  # of the pyramid; the landmarks give the first guess, so motion of any size is in reach
RETURN_PX = 0.15  # a feature that does not come back to within this is dropped
RANSAC_PX = 0.5
EXPOSURE = 0.08  # change of brightness from which it is taken out first
EYES = (slice(36, 42), slice(42, 48))
BROWS = (slice(17, 22), slice(22, 27))
OUTLINE = (1, 0, 17, 19, 24, 26, 16, 15, 35, 33, 31)  # iBUG, around the rigid region
INSIDE = 0.9  # the region is drawn in towards its middle, away from hair and background
LID = 0.25  # of an eye's width: how far around eye and brow skin moves


@dataclass(frozen=True, slots=True)
class Motion:
    """A similarity from the frame before to this one, z → factor · z + shift, for px as complex numbers x + iy.

    share: of the features that agree with it. noise_px: rms distance of those, a coordinate. count: how many of them
    are independent (windows that overlap err together). middle, spread_px: their mean place in the frame before, and
    their rms distance from it.
    """

    factor: complex
    shift: complex
    share: float
    noise_px: float
    count: float
    middle: complex
    spread_px: float

    def variance_at(self, place: complex) -> float:
        """Of the moved `place`, a coordinate, px²."""
        return self.noise_px**2 / self.count + self.turn_variance * abs(place - self.middle) ** 2

    @property
    def turn_variance(self) -> float:
        """Of the angle in rad², and of the logarithm of the scale."""
        return self.noise_px**2 / (self.count * self.spread_px**2)


class FaceFlow:
    """Follows one face through a video, frame by frame. Not thread-safe."""

    def __init__(self) -> None:
        self._frame: UInt8 | None = None
        self._landmarks: Float64 | None = None

    def step(self, frame: UInt8, landmarks: Float32 | None) -> Motion | None:
        """Take the next frame `(h, w, 3)` and the face's landmarks `(68, 2)` in it, None where there is no face.

        Returns the motion since the frame before; None where either lacks a face or too few features agree. Raises
        nothing. The same frames give the same motion.
        """
        before, points = self._frame, self._landmarks
        self._frame = None if landmarks is None else frame
        self._landmarks = None if landmarks is None else landmarks.astype(np.float64)
        if before is None or points is None or self._landmarks is None:
            return None
        return _motion(before, frame, points, self._landmarks)


def _motion(before: UInt8, frame: UInt8, points: Float64, moved: Float64) -> Motion | None:
    """The motion between two frames, whose landmarks give the region and the first guess."""
    # 1. the same rectangle of both, grey, of a face of at most MAX_FACE_PX
    size = float(np.ptp(points, axis=0).max())
    low = np.floor(np.minimum(points.min(0), moved.min(0)) - REACH * size).astype(int)
    high = np.ceil(np.maximum(points.max(0), moved.max(0)) + REACH * size).astype(int)
    (x1, y1), (x2, y2) = np.maximum(low, 0), np.minimum(high, before.shape[1::-1])
    if x2 - x1 < 32 or y2 - y1 < 32 or size < 16:
        return None
    scale = min(1.0, MAX_FACE_PX / size)
    first, second = (_grey(image[y1:y2, x1:x2], scale) for image in (before, frame))
    corner = np.array([x1, y1])
    inside = (points - corner + 0.5) * scale - 0.5
    guess = similarity_of(points, moved)
    # 2. features, there and back
    region, side = rigid_region(inside, first.shape), max(9, round(WINDOW * size * scale) | 1)
    there_region = rigid_region((moved - corner + 0.5) * scale - 0.5, first.shape)
    second = _as_bright(second, there_region, first, region)
    seeds = cv2.goodFeaturesToTrack(
        first, MAX_FEATURES, QUALITY, max(2.0, SPACING * size * scale), mask=region, blockSize=3
    )
    if seeds is None or len(seeds) < MIN_FEATURES:
        return None
    start = cast(Float32, seeds.reshape(-1, 2))
    expected = ((apply(guess, (start + 0.5) / scale - 0.5 + corner) - corner + 0.5) * scale - 0.5).astype(np.float32)
    there, kept = _there_and_back(first, second, start, expected, side)
    if kept.sum() < MIN_FEATURES:
        return None
    # 3. what agrees on one similarity, and that similarity in frame px
    source, target = ((p[kept].astype(np.float64) + 0.5) / scale - 0.5 + corner for p in (start, there))
    _, agree = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=RANSAC_PX / scale, maxIters=500, confidence=0.999
    )
    if agree is None or agree.sum() < MIN_FEATURES:
        return None
    chosen = agree.ravel() > 0
    patches = float(np.count_nonzero(region)) / side**2
    return _fitted(source[chosen], target[chosen], float(chosen.sum()) / len(start), patches)


def _there_and_back(
    first: UInt8, second: UInt8, start: Float32, expected: Float32, side: int
) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Where the features `(n, 2)` are in the second picture, and which of them came back to where they started."""
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
    """Least squares on what agrees, with its noise; `patches` that do not overlap cover all of it."""
    z, w = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    middle, spread = z.mean(), float(np.sqrt((np.abs(z - z.mean()) ** 2).mean()))
    factor = complex(((z - middle).conj() * (w - w.mean())).sum() / (np.abs(z - middle) ** 2).sum())
    shift = complex(w.mean() - factor * middle)
    left = factor * z + shift - w
    noise = float(np.sqrt((np.abs(left) ** 2).sum() / (2 * len(z) - 4)))
    count = max(1.0, min(float(len(z)), share * patches))
    return Motion(factor, shift, share, noise, count, complex(middle), spread)


def rigid_region(points: Float64, shape: tuple[int, ...]) -> UInt8:
    """Where features may lie, 0/255 `(h, w)`, of landmarks `(68, 2)` in px of a picture of that shape."""
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


def similarity_of(source: Float64, target: Float64) -> Float64:
    """Least-squares similarity `(2, 3)` from points to points."""
    z, w = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    factor = ((z - z.mean()).conj() * (w - w.mean())).sum() / (np.abs(z - z.mean()) ** 2).sum()
    shift = w.mean() - factor * z.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def _grey(image: UInt8, scale: float) -> UInt8:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        size = round(grey.shape[1] * scale), round(grey.shape[0] * scale)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return cast(UInt8, grey)


def _as_bright(picture: UInt8, region: UInt8, like: UInt8, like_region: UInt8) -> UInt8:
    """The picture, its face as bright as in the other: tracking takes a flash for motion."""
    gain = cv2.mean(like, mask=like_region)[0] / max(1.0, cv2.mean(picture, mask=region)[0])
    return picture if abs(gain - 1) < EXPOSURE else cast(UInt8, cv2.convertScaleAbs(picture, alpha=gain))


def _whole(points: Float64) -> npt.NDArray[np.int32]:
    """Sixteenths of a px, as cv2 draws with shift 4."""
    return cast(npt.NDArray[np.int32], np.rint(points * 16).astype(np.int32))
