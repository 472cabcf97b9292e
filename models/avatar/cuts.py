"""Finds where a video is cut, so that nothing is smoothed across. Knows no files; holds two small histograms.

Two signs must agree: colours that change at once, a face that jumps, features that cannot be followed, a jump that
stands alone. A flash changes colours alone; fast motion lasts for more than a frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.flow import Motion
from models.types import Float32, UInt8

Float64 = npt.NDArray[np.float64]

SAMPLES = 64  # rows and columns of a frame that are looked at
BINS = 6  # a colour channel
NEW_PICTURE = 0.3  # Hellinger distance of two frames' colours from which the picture is another
LOST = 0.5  # share of features below which the face was not followed
MOVED = 0.06  # of the face's size in one frame: a jump, where the picture is another or features are lost as well
JUMPED = 0.2  # the same, where it is all there is: 5 faces a second
SUDDEN = 4.0  # times the jumps of the frames around: fast motion lasts, a cut stands alone
GAP_JUMP = 0.05  # of the face's size for each frame without a face: so far it may have gone unseen


@dataclass(frozen=True, slots=True)
class CutEvidence:
    """What tells a frame from the one before it that showed a face.

    picture: Hellinger distance of their colours, 0 to 1. jump: how far the landmarks went, rms, in sizes of the face.
    share: of the features that could be followed. gap: frames between the two without a face.
    """

    picture: float
    jump: float
    share: float
    gap: int = 0


class CutDetector:
    """Looks at frames as they come. Not thread-safe."""

    def __init__(self) -> None:
        self._last: Float32 | None = None  # colours of the frame before
        self._colours: Float32 | None = None  # of this frame
        self._with_face: Float32 | None = None  # of the last frame that showed a face
        self._landmarks: Float64 | None = None
        self._gap = 0

    def new_picture(self, frame: UInt8) -> bool:
        """Take the next frame `(h, w, 3)`: whether its colours are others than those of the frame before."""
        self._last, self._colours = self._colours, colours(frame)
        return self._last is not None and distance(self._last, self._colours) > NEW_PICTURE

    def sign(self, landmarks: Float32 | None, motion: Motion | None) -> CutEvidence | None:
        """What the frame that `new_picture` took, with its landmarks `(68, 2)`, says against the last with a face."""
        if landmarks is None or self._colours is None:
            self._gap += 1
            return None
        points, before, seen = landmarks.astype(np.float64), self._landmarks, self._with_face
        gap, self._gap = self._gap, 0
        self._landmarks, self._with_face = points, self._colours
        if before is None or seen is None:
            return None
        size = max(1.0, float(np.ptp(before, axis=0).max()))
        jump = float(np.sqrt(((points - before) ** 2).sum(1).mean())) / size
        return CutEvidence(distance(seen, self._colours), jump, 0.0 if motion is None else motion.share, gap)


def find_cuts(signs: Sequence[CutEvidence | None]) -> list[int]:
    """Indices of the frames that begin a new scene, of signs a frame; None says nothing."""
    found = []
    for k, sign in enumerate(signs):
        around = [other.jump for other in (*signs[max(0, k - 1) : k], *signs[k + 1 : k + 2]) if other is not None]
        if sign is not None and _is_cut(sign, max(around, default=sign.jump)):
            found.append(k)
    return found


def scenes_of(cuts: Sequence[int], count: int) -> list[slice]:
    """The scenes of `count` frames between cuts, as slices; never empty."""
    edges = [0, *(cut for cut in sorted(set(cuts)) if 0 < cut < count), count]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def colours(frame: UInt8) -> Float32:
    """Shares of a frame's colours in 6³ bins, square roots, of 64 × 64 samples."""
    rows, columns = (max(1, side // SAMPLES) for side in frame.shape[:2])
    few = np.ascontiguousarray(frame[::rows, ::columns])
    counts = cv2.calcHist([few], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    shares: Float32 = np.sqrt(counts.ravel() / few[..., 0].size).astype(np.float32)
    return shares


def distance(first: Float32, second: Float32) -> float:
    """Hellinger's distance, 0 for the same colours, 1 for none in common."""
    return float(np.sqrt(max(0.0, 1 - float(first @ second))))


def _is_cut(sign: CutEvidence, around: float) -> bool:
    """around: the larger jump of the two neighbours."""
    if sign.gap:
        return sign.picture > NEW_PICTURE or sign.jump > JUMPED + GAP_JUMP * sign.gap
    lost, sudden = sign.share < LOST, sign.jump > SUDDEN * around
    if sign.picture > NEW_PICTURE:
        return sign.jump > MOVED or lost
    return sudden and (sign.jump > JUMPED or (lost and sign.jump > MOVED))
