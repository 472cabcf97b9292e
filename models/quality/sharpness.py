"""Whether the pasted mouth is as sharp as the face around it."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from models.types import UInt8

DETAIL_SIGMA_PX = 1.5  # finer than this is detail
FLOOR = 0.05  # grey levels, far below what H.264 leaves: keeps the ratio of two flat regions at 1


def detail(image: UInt8, region: npt.NDArray[np.bool_]) -> float:
    """Mean absolute fine detail inside `region` (h, w) of an RGB picture uint8 `(h, w, 3)`, in grey levels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), DETAIL_SIGMA_PX))
    return float(fine[region].mean()) if region.any() else 0.0


def sharpness_ratio(image: UInt8, inner: npt.NDArray[np.bool_], outer: npt.NDArray[np.bool_]) -> float:
    """Detail inside `inner` over detail inside `outer`. What is right for a face is its source's own ratio."""
    return (detail(image, inner) + FLOOR) / (detail(image, outer) + FLOOR)
