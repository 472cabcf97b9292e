"""A detected face, and the protocol of face detectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from models.avatar.appearance import SAME_BOW, SAME_TURN, adapted, is_covered, is_same
from models.types import Float32, UInt8


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face. Points are in frame px; pixel centres have whole numbers.

    box: x1, y1, x2, y2 around the points. score: the detector's confidence; of a tracked face, that of the frame where
    it was detected. flag: the mesh network's probability that it sees a face. mesh: float32, all points: FaceMesh's
    `(468, 2)` or DWPose's `(68, 2)`. landmarks: float32 `(68, 2)`, iBUG order. appearance: see
    models/avatar/appearance.py; of a tracked face, averaged over the last frames; None if the detector cannot tell
    faces apart.
    """

    box: tuple[float, float, float, float]
    score: float
    flag: float
    mesh: Float32
    landmarks: Float32
    appearance: Float32 | None = None

    @property
    def size_px(self) -> float:
        """The longer side of the box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def turn(self) -> float:
        """Position of the nose tip between the outer corners of the eyes: 0.5 from the front, 0 or 1 in profile."""
        right, left, tip = self.landmarks[36].astype(np.float64), self.landmarks[45], self.landmarks[30]
        across = left - right
        return float((tip - right) @ across / max(float(across @ across), 1e-6))

    @property
    def bow(self) -> float:
        """Position of the nose tip between the eyes (0) and the chin (1): 0.3 upright, 0.5 bowed by 20°."""
        eyes, tip, chin = (self.landmarks[[36, 45]].astype(np.float64), self.landmarks[30], self.landmarks[8])
        down = np.array([eyes[0, 1] - eyes[1, 1], eyes[1, 0] - eyes[0, 0]])
        return float((tip - eyes.mean(0)) @ down / max(float((chin - eyes.mean(0)) @ down), 1e-6))

    def recognised(self, seen: Face) -> Face | None:
        """Return `seen` with this face's updated appearance, or None.

        None means that `seen` is another face, or that something covers its mouth.
        """
        if self.appearance is None or seen.appearance is None:
            return seen
        if not is_same(self.appearance, seen.appearance):
            return None
        same_pose = abs(self.turn - seen.turn) < SAME_TURN and seen.bow - self.bow < SAME_BOW
        if same_pose and is_covered(self.appearance, seen.appearance, self.mesh):
            return None
        return replace(seen, appearance=adapted(self.appearance, seen.appearance))


class FaceDetector(Protocol):
    """What preparation needs from a detector."""

    def detect(self, frame: UInt8, near: Face | None = None) -> list[Face]:
        """Return the faces in an RGB frame `(h, w, 3)`, largest first.

        near: a face from an earlier frame; then only that face is returned, if it is found and its mouth is visible.
        """
        ...
