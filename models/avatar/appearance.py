"""What a face looks like at the points of its mesh, however it is turned: the same, another, or one that is covered.

Grey levels at the 468 points are compared by their correlation, which no light that is merely brighter changes. The
bounds lie between what was measured on two portraits turned in space by a model of their own mesh, a rendered one that
talks, and drawn hands: the same face turned by 40° 0.79, lit from one side 0.95, talking 0.94; another face 0.51 at
most. Knows no detector and no video.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import Float32, UInt8

BLUR = 0.013  # standard deviation over the side of the mesh's input: smaller than a lip, larger than a pixel
SAME = 0.6  # correlation of the whole face from which it is the same
COVERED = 0.7  # correlation of cheeks and chin below which something is in front of them, where the rest is the same
SAME_TURN = 0.1  # of Face.turn, about 12°: cheeks of a head that turns further look different for that alone
SAME_BOW = 0.1  # of Face.bow, about 12°, for the same reason; a raised chin changes little
ADAPT = 0.1  # how fast the memory of a face follows what is seen: ten frames
LEAST_POINTS = 0.5  # share of the points that must be seen for a judgement
RIGHT_EYE, LEFT_EYE, NOSE_TIP = 33, 263, 4  # of the mesh
MOUTH = (61, 291, 0, 17)  # corners, upper and lower edge of the lips


def sample_appearance(crop: UInt8, points: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_]) -> Float32:
    """Grey levels `(n,)` of an RGB crop at `points` `(n, 2)` px, mean 0, deviation 1; NaN where not `seen` `(n,)`."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), BLUR * max(crop.shape))
    places = points.astype(np.float32)[None]
    levels = cv2.remap(grey, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    levels = np.where(seen, levels, np.nan).astype(np.float32)
    if seen.any():
        levels = (levels - np.nanmean(levels)) / max(float(np.nanstd(levels)), 1e-3)
    return cast(Float32, levels)


def correlation(a: Float32, b: Float32) -> float | None:
    """Pearson's r of two looks where both are seen; None where that is too little."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.mean() < LEAST_POINTS:
        return None
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    return float((x * y).sum() / max(np.sqrt((x * x).sum() * (y * y).sum()), 1e-9))


def is_same(known: Float32, look: Float32) -> bool:
    """Whether two looks are of one face. What is hardly seen is taken for it."""
    r = correlation(known, look)
    return r is None or r >= SAME


def is_covered(known: Float32, look: Float32, mesh: Float32) -> bool:
    """Whether something is in front of the cheeks and the chin of a face, whose `mesh` `(468, 2)` is in any px."""
    low = _around_mouth(mesh)
    r = correlation(known[low], look[low])
    return r is not None and r < COVERED


def adapted(known: Float32, look: Float32) -> Float32:
    """The memory of a face after it was seen once more."""
    blended = np.where(np.isfinite(known), (1 - ADAPT) * known + ADAPT * look, look)
    return np.where(np.isfinite(look), blended, known).astype(np.float32)


def _around_mouth(mesh: Float32) -> npt.NDArray[np.bool_]:
    """Which points `(468,)` lie below the tip of the nose and not on the lips, which move."""
    across = (mesh[LEFT_EYE] - mesh[RIGHT_EYE]).astype(np.float64)
    across /= max(float(np.linalg.norm(across)), 1e-6)
    along, down = mesh @ across, mesh @ np.array([-across[1], across[0]])
    left, right, upper, lower = along[MOUTH[0]], along[MOUTH[1]], down[MOUTH[2]], down[MOUTH[3]]
    on_lips = (along > left) & (along < right) & (down > upper) & (down < lower)
    return cast("npt.NDArray[np.bool_]", (down > down[NOSE_TIP]) & ~on_lips)
