"""Compares the appearance of faces at the points of their meshes: the same face, another, or a covered one.

An appearance is the grey levels at the mesh's 468 points, so it does not depend on the head's pose. Two appearances are
compared by their correlation, which does not change with brightness. The thresholds lie between values measured on two
portraits turned in 3D by their own mesh, a rendered face that talks, and drawn hands: the same face turned by 40° 0.79,
lit from one side 0.95, talking 0.94; another face at most 0.51.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import Float32, UInt8

BLUR = 0.013  # standard deviation, relative to the side of the mesh's input: smaller than a lip, larger than a pixel
SAME = 0.6  # correlation of the whole face above which two faces are the same
COVERED = 0.7  # correlation of cheeks and chin below which something covers them, if the face is the same
SAME_TURN = 0.1  # difference of Face.turn, about 12°; a larger turn alone changes the look of the cheeks
SAME_BOW = 0.1  # difference of Face.bow, about 12°, for the same reason; raising the chin changes little
ADAPT = 0.1  # weight of a new frame in a tracked face's appearance: about ten frames
MIN_POINTS = 0.5  # share of the points that must be visible in both for a comparison
RIGHT_EYE, LEFT_EYE, NOSE_TIP = 33, 263, 4  # of the mesh
MOUTH = (61, 291, 0, 17)  # corners, upper and lower edge of the lips


def sample_appearance(crop: UInt8, points: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_]) -> Float32:
    """Return the grey levels `(n,)` of an RGB crop at `points` (n, 2) px, normalised to mean 0 and deviation 1.

    NaN where `seen` (n,) is False.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), BLUR * max(crop.shape))
    places = points.astype(np.float32)[None]
    levels = cv2.remap(grey, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    levels = np.where(seen, levels, np.nan).astype(np.float32)
    if seen.any():
        levels = (levels - np.nanmean(levels)) / max(float(np.nanstd(levels)), 1e-3)
    return cast(Float32, levels)


def correlation(a: Float32, b: Float32) -> float | None:
    """Return Pearson's r of two appearances where both are known; None where too few points are."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.mean() < MIN_POINTS:
        return None
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    return float((x * y).sum() / max(np.sqrt((x * x).sum() * (y * y).sum()), 1e-9))


def is_same(known: Float32, look: Float32) -> bool:
    """Return whether two appearances are of the same face; True where too little is visible to compare."""
    r = correlation(known, look)
    return r is None or r >= SAME


def is_covered(known: Float32, look: Float32, mesh: Float32) -> bool:
    """Return whether something covers the cheeks or the chin of a face with the `mesh` (468, 2), in any px."""
    low = _around_mouth(mesh)
    r = correlation(known[low], look[low])
    return r is not None and r < COVERED


def adapted(known: Float32, look: Float32) -> Float32:
    """Return the appearance `known` of a tracked face, updated with a new frame's."""
    blended = np.where(np.isfinite(known), (1 - ADAPT) * known + ADAPT * look, look)
    return np.where(np.isfinite(look), blended, known).astype(np.float32)


def _around_mouth(mesh: Float32) -> npt.NDArray[np.bool_]:
    """Mask `(468,)` of the points below the tip of the nose, without the lips, which move."""
    across = (mesh[LEFT_EYE] - mesh[RIGHT_EYE]).astype(np.float64)
    across /= max(float(np.linalg.norm(across)), 1e-6)
    along, down = mesh @ across, mesh @ np.array([-across[1], across[0]])
    left, right, upper, lower = along[MOUTH[0]], along[MOUTH[1]], down[MOUTH[2]], down[MOUTH[3]]
    on_lips = (along > left) & (along < right) & (down > upper) & (down < lower)
    return cast("npt.NDArray[np.bool_]", (down > down[NOSE_TIP]) & ~on_lips)
