"""What an avatar knows of its faces: where they lie on the template, and what is around them. Knows no network.

A crop shows the face alone, and a restorer of whole heads was trained with hair and background. Both are in the
avatar's own frames: each is laid onto the template by the crop's transform and the alignment's, composed into one warp.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from models.geometry import warp
from models.restore.align import composed, smoothed_points, to_template
from models.types import CROP_PX, RESTORED_PX, Float32, PreparedAvatar, UInt8

CACHE_BYTES = 256 << 20  # heads on the template: 340 of them, 13 s of an avatar


class AvatarFaces:
    """avatar: with its frames. Not thread-safe. The least recently used heads leave past `cache_bytes`."""

    def __init__(self, avatar: PreparedAvatar, cache_bytes: int = CACHE_BYTES) -> None:
        self._avatar = avatar
        self._points = smoothed_points(avatar.landmarks, avatar.transforms, avatar.has_face, avatar.fps)
        self._kept = max(1, cache_bytes // (RESTORED_PX * RESTORED_PX * 3))
        self._heads: OrderedDict[int, UInt8] = OrderedDict()

    def points(self, frames: npt.NDArray[np.int64], side: int = CROP_PX) -> Float32:
        """Five points of the crops of avatar frames `(n,)`, `(n, 5, 2)` in px of crops of `side` px."""
        factor = side / CROP_PX
        return (self._points[frames] * factor + (factor - 1) / 2).astype(np.float32)

    def heads(self, frames: npt.NDArray[np.int64]) -> UInt8:
        """The avatar's own heads on the template, RGB `(n, 512, 512, 3)`: what is around the generated face."""
        return np.stack([self._head(int(frame)) for frame in frames])

    def _head(self, frame: int) -> UInt8:
        if frame in self._heads:
            self._heads.move_to_end(frame)
            return self._heads[frame]
        assert self._avatar.frames is not None
        transform = composed(self._avatar.transforms[frame], to_template(self._points[frame]))
        self._heads[frame] = warp(self._avatar.frames[frame], transform, RESTORED_PX)
        while len(self._heads) > self._kept:
            self._heads.popitem(last=False)
        return self._heads[frame]
