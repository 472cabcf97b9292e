"""An avatar's faces on the FFHQ template: their landmarks, and the picture around them.

A crop shows the face alone, but restorers such as GFPGAN are trained on whole heads with hair and background. Both are
in the avatar's own frames: each frame is warped onto the template by the crop's transform composed with the alignment.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from models.geometry import warp
from models.restore.align import composed, smoothed_points, to_template
from models.types import CROP_PX, RESTORED_PX, Float32, PreparedAvatar, UInt8

CACHE_BYTES = 256 << 20  # 340 heads on the template, 13 s of an avatar


class AvatarFaces:
    """avatar: loaded with its frames. Keeps the most recently used heads within `cache_bytes`. Not thread-safe."""

    def __init__(self, avatar: PreparedAvatar, cache_bytes: int = CACHE_BYTES) -> None:
        self._avatar = avatar
        self._points = smoothed_points(avatar.landmarks, avatar.transforms, avatar.has_face, avatar.fps)
        self._heads: LRUCache[int, UInt8] = LRUCache(max(1, cache_bytes // (RESTORED_PX * RESTORED_PX * 3)))

    def points(self, frames: npt.NDArray[np.int64], side: int = CROP_PX) -> Float32:
        """Return the five points in the crops of avatar frames `(n,)`, `(n, 5, 2)` in px of crops of `side` px."""
        factor = side / CROP_PX
        return (self._points[frames] * factor + (factor - 1) / 2).astype(np.float32)

    def heads(self, frames: npt.NDArray[np.int64]) -> UInt8:
        """Return the avatar's own heads on the template, RGB `(n, 512, 512, 3)`: the surroundings of the faces."""
        return np.stack([self._head(int(frame)) for frame in frames])

    def _head(self, frame: int) -> UInt8:
        head = self._heads.get(frame)
        if head is None:
            assert self._avatar.frames is not None
            transform = composed(self._avatar.transforms[frame], to_template(self._points[frame]))
            head = self._heads[frame] = warp(self._avatar.frames[frame], transform, RESTORED_PX)
        return head
