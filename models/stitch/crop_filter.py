"""Steadies the generated crops of one utterance over time: the network's noise goes, the lips' motion stays.

Crops are stabilised already, so a pixel of one is the same place of the face as in the crop before. Knows no avatar.
"""

from __future__ import annotations

import cv2
import numpy as np

from models.deflicker import TemporalFilter
from models.types import CROP_PX, Box, PreparedAvatar, UInt8

WHOLE_CROP: Box = (0, 0, CROP_PX, CROP_PX)
MARGIN_PX = 16  # around the masks, of a 256 px crop: what a paste may look at beside them
# Grey levels of change that count as motion. With 3, the lips of the embedded default follow speech less well than
# unsteadied ones, by 0.004 of Pearson's r; with 2 by 0.0002, and noise of 3 levels falls to 0.39 instead of 0.31.
MOTION_LEVELS = 2.0
FINE = 2  # crop px, of 256, per pixel on which change is measured


def pasted_box(avatar: PreparedAvatar) -> Box:
    """The part of the crop that any frame's mask shows, in px of a 256 px crop; all of it for MuseTalk's own paste."""
    if avatar.boxes is not None or not avatar.masks.any():
        return WHOLE_CROP
    x, y, width, height = cv2.boundingRect(avatar.masks.max(0))
    left, top = max(x - MARGIN_PX, 0), max(y - MARGIN_PX, 0)
    return left, top, min(x + width + MARGIN_PX, CROP_PX), min(y + height + MARGIN_PX, CROP_PX)


class CropFilter:
    """The memory of one utterance. `reset` where crops are left out: what comes next is taken as it is."""

    def __init__(self, box: Box = WHOLE_CROP) -> None:
        """box: what is steadied, in px of a 256 px crop; the rest of a crop stays as it is."""
        x1, y1, x2, y2 = self._box = box
        self._steadier = TemporalFilter((max((x2 - x1) // FINE, 1), max((y2 - y1) // FINE, 1)), MOTION_LEVELS)

    def reset(self) -> None:
        """Forget the crops so far."""
        self._steadier.reset()

    def __call__(self, crop: UInt8) -> UInt8:
        """The next crop, `(s, s, 3)`, s = 256 or 512 and the same throughout, steadied: a copy."""
        times = crop.shape[0] // CROP_PX
        x1, y1, x2, y2 = (times * edge for edge in self._box)
        part, steadied = np.ascontiguousarray(crop[y1:y2, x1:x2]), crop.copy()
        steadied[y1:y2, x1:x2] = self._steadier(part, part)
        return steadied
