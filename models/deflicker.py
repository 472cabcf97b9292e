"""Keeps faces from flickering that a network made one frame at a time. Knows no network, file or avatar.

Such a network sees one frame at a time, so in a still face its detail dances with the noise. Where the picture rests,
each face is averaged with those before; where it changes, it is taken as it is. Change is measured on blurred faces, so
that noise does not count as change.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from models.types import RESTORED_PX, Float32, UInt8

SHARE_AT_REST = 0.3  # of the newest face where nothing changes: uncorrelated flicker falls to √(0.3 / 1.7) = 0.42
CHANGE_LEVELS = 3.0  # grey levels of change, of 255, by which the newest face has 1 − (1 − 0.3) / e ≈ three quarters
COARSE_PX = 128  # change is measured on faces of this side …
BLUR_PX = 5  # … blurred over so many of its pixels: 20 px of a 512 px face
BESIDE = np.ones((3, 3), np.uint8)  # coarse pixels around one
Size = tuple[int, int]  # width, height


def coarse(face: UInt8, size: Size = (COARSE_PX, COARSE_PX)) -> Float32:
    """What change is measured on: `(h, w, 3)` → float32 of `size`, without noise."""
    small = cv2.resize(face, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return cast(Float32, cv2.blur(small, (BLUR_PX, BLUR_PX)))


def rest(
    a: Float32,
    b: Float32,
    size: Size = (RESTORED_PX, RESTORED_PX),
    levels: float = CHANGE_LEVELS,
    wary: bool = False,
) -> Float32:
    """How much two `coarse` faces show the same: 1 at rest, 0 where they differ, `(height, width)` of `size`.

    levels: as CHANGE_LEVELS. wary: what lies beside a change counts as changed, so that a closing mouth's corners leave
    no trace.
    """
    apart = cv2.absdiff(a, b)
    change = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2]) / np.float32(levels)  # (h, w)
    change = cv2.dilate(change, BESIDE) if wary else change
    same = np.exp(-change * change)
    return cast(Float32, cv2.resize(same, size, interpolation=cv2.INTER_LINEAR))


class TemporalFilter:
    """One face's memory, or that of a part of it. `reset` at a cut. size: of what change is measured on."""

    def __init__(self, size: Size = (COARSE_PX, COARSE_PX), levels: float = CHANGE_LEVELS) -> None:
        """levels: as CHANGE_LEVELS; fewer let less noise count as rest, and keep slow motion closer."""
        self._size, self._levels = size, levels
        self._face: Float32 | None = None  # (h, w, 3)
        self._coarse: Float32 | None = None

    def reset(self) -> None:
        """Forget the face."""
        self._face = self._coarse = None

    def __call__(self, base: UInt8, made: UInt8) -> UInt8:
        """The face to show, `(h, w, 3)`. made: what the network made. base: what it saw, or `made` again."""
        seen = coarse(base, self._size)
        if self._face is None or self._coarse is None:
            self._face, self._coarse = made.astype(np.float32), seen
            return made
        shown: Size = (made.shape[1], made.shape[0])
        share = 1 - (1 - SHARE_AT_REST) * rest(seen, self._coarse, shown, self._levels, wary=True)  # (h, w)
        self._face = cast(Float32, cv2.blendLinear(made.astype(np.float32), self._face, share, 1 - share))
        small = cv2.resize(share, self._size, interpolation=cv2.INTER_AREA)
        self._coarse = cast(Float32, cv2.blendLinear(seen, self._coarse, small, 1 - small))
        return cast(UInt8, cv2.convertScaleAbs(self._face))  # rounded
