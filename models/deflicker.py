"""A temporal filter for generated faces: averages over time where the picture rests, and passes changes at once.

A network that sees one frame at a time makes fine detail that changes from frame to frame (flicker), even in a still
face. Where the picture rests, each face is averaged with the faces before it; where it changes, the new face is taken
as it is. Change is measured on blurred, reduced faces, so that noise does not count as change.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from models.types import RESTORED_PX, Float32, UInt8

NEW_SHARE = 0.3  # weight of the newest face where nothing changes: uncorrelated flicker falls to √(0.3 / 1.7) = 0.42
CHANGE_LEVELS = 3.0  # grey levels (of 255) of change at which the newest face weighs 1 − (1 − 0.3) / e, about 3/4
THUMBNAIL_PX = 128  # side of the reduced faces on which change is measured …
BLUR_PX = 5  # … and their blur, in pixels of the reduced face: 20 px of a 512 px face
NEIGHBOURS = np.ones((3, 3), np.uint8)  # a reduced pixel and the eight around it
Size = tuple[int, int]  # width, height


def thumbnail(face: UInt8, size: Size = (THUMBNAIL_PX, THUMBNAIL_PX)) -> Float32:
    """Return a face `(h, w, 3)` reduced to `size` and blurred, float32, without its noise."""
    small = cv2.resize(face, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return cast(Float32, cv2.blur(small, (BLUR_PX, BLUR_PX)))


def stillness(
    a: Float32,
    b: Float32,
    size: Size = (RESTORED_PX, RESTORED_PX),
    levels: float = CHANGE_LEVELS,
    grow: bool = False,
) -> Float32:
    """Return how equal two thumbnails are, `(height, width)` of `size`: 1 where nothing changed, 0 where all did.

    levels: see CHANGE_LEVELS. grow: pixels next to a change count as changed, so that the corners of a closing mouth
    leave no trace.
    """
    red, green, blue = cv2.split(cv2.absdiff(a, b))
    change = cv2.max(cv2.max(red, green), blue) / np.float32(levels)
    change = cv2.dilate(change, NEIGHBOURS) if grow else change  # (h, w)
    same = np.exp(-change * change)
    return cast(Float32, cv2.resize(same, size, interpolation=cv2.INTER_LINEAR))


class TemporalFilter:
    """Filters one face, or a part of it, over time. Call `reset` at a cut.

    size: of the thumbnails on which change is measured. levels: see CHANGE_LEVELS; with a smaller value less noise
    counts as rest, and slow motion is followed more closely.
    """

    def __init__(self, size: Size = (THUMBNAIL_PX, THUMBNAIL_PX), levels: float = CHANGE_LEVELS) -> None:
        self._size, self._levels = size, levels
        self._face: Float32 | None = None  # (h, w, 3), the filtered face
        self._thumbnail: Float32 | None = None  # of the base faces, filtered alike

    def reset(self) -> None:
        """Forget the faces so far: the next one is returned unchanged."""
        self._face = self._thumbnail = None

    def __call__(self, base: UInt8, made: UInt8) -> UInt8:
        """Return the face to show, `(h, w, 3)`.

        made: the network's output. base: the network's input, on which change is measured; `made` where there is none.
        """
        seen = thumbnail(base, self._size)
        if self._face is None or self._thumbnail is None:
            self._face, self._thumbnail = made.astype(np.float32), seen
            return made
        shown: Size = (made.shape[1], made.shape[0])
        share = 1 - (1 - NEW_SHARE) * stillness(seen, self._thumbnail, shown, self._levels, grow=True)  # (h, w)
        self._face = cast(Float32, cv2.blendLinear(made.astype(np.float32), self._face, share, 1 - share))
        small = cv2.resize(share, self._size, interpolation=cv2.INTER_AREA)
        self._thumbnail = cast(Float32, cv2.blendLinear(seen, self._thumbnail, small, 1 - small))
        return cast(UInt8, cv2.convertScaleAbs(self._face))  # rounded
