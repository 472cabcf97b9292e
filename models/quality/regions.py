"""The regions of a face, in crop space, in which quality is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from models.types import CROP_PX, UInt8

Bool = npt.NDArray[np.bool_]

# iBUG's 68 points
EYES = (36, 45)  # outer corners
JAW, BROWS, NOSE_TIP, OUTER_LIPS, UPPER_LIP = range(4, 13), range(17, 27), 30, range(48, 60), range(50, 53)
MOUTH_MARGIN, JAW_WIDTH, CLEARANCE = 0.12, 0.16, 0.06  # relative to the distance of the eyes' outer corners
OPENING = 0.25  # relative to the same distance: how far the lower lip may drop
RING_PX = 4  # to either side of the mask's edge, of 256
PASTED, KEPT = 230, 5  # paste weights above which a pixel is generated, and below which it is the source's


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Regions of a 256² crop, bool `(256, 256)` each.

    mouth: lips, with room to open. jaw: a band along the jaw line. seam: a ring along the mask's edge, down to the
    lips; below, the face moves with speech. steady: generated but not moved by speech, between nose and upper lip.
    rigid: not generated: eyes, brows, nose.
    """

    mouth: Bool
    jaw: Bool
    seam: Bool
    steady: Bool
    rigid: Bool

    def named(self) -> dict[str, Bool]:
        """Return the regions in which flicker is measured."""
        return {"mouth": self.mouth, "jaw": self.jaw, "seam": self.seam}


def regions_of(landmarks: npt.NDArray[Any], mask: UInt8) -> Regions:
    """Compute the regions. landmarks: iBUG's `(68, 2)` of a face at rest, in crop px. mask: uint8 `(256, 256)`."""
    assert landmarks.shape == (68, 2) and mask.shape == (CROP_PX, CROP_PX), (landmarks.shape, mask.shape)
    unit = float(np.linalg.norm(landmarks[EYES[1]] - landmarks[EYES[0]]))
    rows = np.arange(CROP_PX)[:, None]
    # 1. lips with room to open, and the jaw line
    lips = landmarks[list(OUTER_LIPS)]
    mouth = _grown(_filled(np.concatenate([lips, lips + np.array([0, OPENING * unit])])), MOUTH_MARGIN * unit)
    jaw = np.zeros((CROP_PX, CROP_PX), np.uint8)
    line = np.rint(landmarks[list(JAW)]).astype(np.int32)
    cv2.polylines(jaw, [line], False, 1, max(1, round(JAW_WIDTH * unit)))
    # 2. a ring along the mask's edge
    inside = (mask >= 128).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RING_PX + 1, 2 * RING_PX + 1))
    seam = (cv2.dilate(inside, kernel) > 0) & (cv2.erode(inside, kernel) == 0)
    # 3. generated and kept parts that speech does not move
    face = _filled(np.concatenate([landmarks[:17], landmarks[list(BROWS)]]))
    above_lips = rows < landmarks[list(UPPER_LIP), 1].min() - CLEARANCE * unit
    at_rest = _grown(_filled(lips), MOUTH_MARGIN * unit)
    return Regions(
        mouth=mouth,
        jaw=(jaw > 0) & ~mouth,
        seam=seam & ~mouth & (rows < lips[:, 1].mean()),
        steady=face & (mask > PASTED) & above_lips & ~at_rest,
        rigid=face & (mask < KEPT) & (rows < landmarks[NOSE_TIP, 1]),
    )


def _filled(points: npt.NDArray[Any]) -> Bool:
    """The convex hull of points `(m, 2)`."""
    out = np.zeros((CROP_PX, CROP_PX), np.uint8)
    cv2.fillConvexPoly(out, cv2.convexHull(np.rint(points).astype(np.int32)), 1)
    return out > 0


def _grown(region: Bool, by_px: float) -> Bool:
    side = 2 * max(1, round(by_px)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    grown: Bool = cv2.dilate(region.astype(np.uint8), kernel) > 0
    return grown
