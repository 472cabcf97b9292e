"""An avatar's faces on the FFHQ template: their landmarks, and the picture around them.

A crop shows the face alone, but restorers such as GFPGAN are trained on whole heads with hair and background. Both are
in the avatar's own frames: each frame is warped onto the template by the crop's transform composed with the alignment.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.restore.align import composed, smoothed_points, to_template, warped
from models.types import CROP_PX, Float32, PreparedAvatar, UInt8


class AvatarFaces:
    """avatar: loaded with its frames. key: its id and version. Thread-safe."""

    def __init__(self, avatar: PreparedAvatar, key: tuple[str, str]) -> None:
        self.key, self._avatar = key, avatar
        self._points = smoothed_points(avatar.landmarks, avatar.transforms, avatar.has_face, avatar.fps)

    def points(self, frames: npt.NDArray[np.int64], side: int = CROP_PX) -> Float32:
        """Return the five points in the crops of avatar frames `(n,)`, `(n, 5, 2)` in px of crops of `side` px."""
        factor = side / CROP_PX
        return (self._points[frames] * factor + (factor - 1) / 2).astype(np.float32)

    def head(self, frame: int) -> UInt8:
        """Return the avatar's own head on the template, RGB `(512, 512, 3)`: what surrounds the face."""
        assert self._avatar.frames is not None
        transform = composed(self._avatar.transforms[frame], to_template(self._points[frame]))
        return warped(self._avatar.frames[frame], transform)
