"""Finds the cuts of a video, so that nothing is smoothed across them.

Two indications must agree, among: colours that change at once, a face that jumps, features that cannot be tracked, and
a jump much larger than those around it. A flash changes only the colours; fast motion lasts for more than one frame.
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

SAMPLES = 64  # rows and columns of a frame that are sampled
BINS = 6  # per colour channel
NEW_PICTURE = 0.3  # Hellinger distance of two frames' colours above which they show different pictures
LOST = 0.5  # share of features below which the face was not tracked
MOVED = 0.06  # face sizes per frame: a jump, if the picture is also new or features are also lost
JUMPED = 0.2  # face sizes per frame: a jump, without other indications; 5 face sizes per second
SUDDEN = 4.0  # times the jumps of the neighbouring frames: fast motion lasts, a cut is a single jump
GAP_JUMP = 0.05  # face sizes per frame without a face: how far the face may have moved unseen


@dataclass(frozen=True, slots=True)
class CutEvidence:
    """How a frame differs from the last frame that showed a face.

    picture: Hellinger distance of their colours, 0 to 1. jump: rms distance of the landmarks, in face sizes. share: of
    the features that were tracked. gap: number of frames without a face between the two.
    """

    picture: float
    jump: float
    share: float
    gap: int = 0


class CutDetector:
    """Collects CutEvidence frame by frame. Not thread-safe."""

    def __init__(self) -> None:
        self._last: Float32 | None = None  # colours of the frame before
        self._colours: Float32 | None = None  # of this frame
        self._with_face: Float32 | None = None  # of the last frame that showed a face
        self._landmarks: Float64 | None = None
        self._gap = 0

    def new_picture(self, frame: UInt8) -> bool:
        """Take the next frame `(h, w, 3)` and return whether its colours differ from those of the frame before."""
        self._last, self._colours = self._colours, colours(frame)
        return self._last is not None and distance(self._last, self._colours) > NEW_PICTURE

    def compare(self, landmarks: Float32 | None, motion: Motion | None) -> CutEvidence | None:
        """Compare the frame that `new_picture` took, with landmarks `(68, 2)`, to the last frame with a face.

        Returns None where either has no face.
        """
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


def find_cuts(evidence: Sequence[CutEvidence | None]) -> list[int]:
    """Return the indices of the frames that begin a new scene, given the evidence of each frame (None: unknown)."""
    found = []
    for k, one in enumerate(evidence):
        neighbours = (*evidence[max(0, k - 1) : k], *evidence[k + 1 : k + 2])
        around = [other.jump for other in neighbours if other is not None]
        if one is not None and _is_cut(one, max(around, default=one.jump)):
            found.append(k)
    return found


def scenes_of(cuts: Sequence[int], count: int) -> list[slice]:
    """Return the scenes between cuts in `count` frames, as slices; none is empty."""
    edges = [0, *(cut for cut in sorted(set(cuts)) if 0 < cut < count), count]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def colours(frame: UInt8) -> Float32:
    """Return the square roots of a frame's colour histogram (shares in 6³ bins, of 64 × 64 samples)."""
    rows, columns = (max(1, side // SAMPLES) for side in frame.shape[:2])
    few = np.ascontiguousarray(frame[::rows, ::columns])
    counts = cv2.calcHist([few], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    shares: Float32 = np.sqrt(counts.ravel() / few[..., 0].size).astype(np.float32)
    return shares


def distance(first: Float32, second: Float32) -> float:
    """Return the Hellinger distance of two `colours`: 0 for equal ones, 1 for none in common."""
    return float(np.sqrt(max(0.0, 1 - float(first @ second))))


def _is_cut(one: CutEvidence, around: float) -> bool:
    """around: the larger jump of the two neighbouring frames."""
    if one.gap:
        return one.picture > NEW_PICTURE or one.jump > JUMPED + GAP_JUMP * one.gap
    lost, sudden = one.share < LOST, one.jump > SUDDEN * around
    if one.picture > NEW_PICTURE:
        return one.jump > MOVED or lost
    return sudden and (one.jump > JUMPED or (lost and one.jump > MOVED))
