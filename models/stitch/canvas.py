"""Renders an avatar's frames with pasted faces. Touches only the pixels that a paste affects.

A frame stays in YUV as it was decoded. Only the part that a paste reads is converted to RGB, and only the pixels that
it changed are converted back.
"""

from __future__ import annotations

import cv2
import numpy as np

from models.media.yuv import AnyFrame, PatchedPicture, picture_at, rgb_part
from models.stitch.paste import PasteMemory, Paster
from models.stitch.planar import paste_planes
from models.types import Box, PreparedAvatar, UInt8

BESIDE_PX = 2  # margin around the changed pixels: chroma is averaged over neighbours


class Canvas:
    """Renders the frames of one avatar, one at a time. Not thread-safe."""

    def __init__(self, avatar: PreparedAvatar) -> None:
        assert avatar.frames is not None, avatar.avatar_id
        self._avatar, self._source = avatar, avatar.frames
        # zeros: the operating system allocates only the pages that are written
        self._rgb = np.zeros((avatar.height, avatar.width, 3), np.uint8)

    def frame(
        self, paster: Paster, face: UInt8 | None, index: int, weight: float = 1.0, memory: PasteMemory | None = None
    ) -> AnyFrame:
        """Frame `index` with `face`, see `Paster.paste_into`; None: unchanged. Valid until the next call."""
        under = picture_at(self._source, index)
        if face is None or weight == 0 or not self._avatar.has_face[index]:
            return under
        x1, y1, x2, y2 = part = _even(paster.affected_box(index), under.shape)
        if x2 <= x1 or y2 <= y1:
            return under
        if paster.planar:
            if not paster.knows(index):
                self._rgb[y1:y2, x1:x2] = rgb_part(under, part)
                paster.learn(self._rgb, index)
            fit = paster.fit(self._rgb, face, index, memory)
            return paste_planes(paster, under, face, fit, weight, memory) or under
        # 1. convert the part that the paste reads
        own, window = rgb_part(under, part), self._rgb[y1:y2, x1:x2]
        window[...] = own
        paster.paste_into(self._rgb, face, index, weight, memory)
        # 2. find the pixels that it changed
        changed = cv2.bitwise_not(cv2.inRange(cv2.absdiff(window, own), (0, 0, 0), (0, 0, 0)))
        x, y, width, height = cv2.boundingRect(changed)
        if not width:
            return under
        spot = (x - BESIDE_PX, y - BESIDE_PX, x + width + BESIDE_PX, y + height + BESIDE_PX)
        left, top, right, bottom = _even(spot, changed.shape)
        rgb = np.ascontiguousarray(window[top:bottom, left:right])
        return PatchedPicture(under, rgb, x1 + left, y1 + top, np.ascontiguousarray(changed[top:bottom, left:right]))


def _even(box: Box, size: tuple[int, ...]) -> Box:
    """The smallest box with even edges around a box, clipped to a picture of even (height, width)."""
    x1, y1, x2, y2 = box
    return max(x1, 0) // 2 * 2, max(y1, 0) // 2 * 2, min(-(-x2 // 2) * 2, size[1]), min(-(-y2 // 2) * 2, size[0])
