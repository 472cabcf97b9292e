"""A small picture of an avatar's face, for a list of avatars."""

from __future__ import annotations

import cv2
import numpy as np

from models.types import PreparedAvatar, UInt8

SIZE_PX = 288
HEADROOM = 2.1  # side of the picture over the size of the face's landmarks, to include hair and chin
JPEG_QUALITY = 85


def poster(avatar: PreparedAvatar) -> bytes:
    """Return a JPEG of the first frame with a face, `SIZE_PX` square, cut around the face.

    The avatar must be loaded with its frames.
    """
    assert avatar.frames is not None
    index = int(np.argmax(avatar.has_face))
    frame: UInt8 = avatar.frames[index]
    points = avatar.landmarks[index]
    low, high = points.min(axis=0), points.max(axis=0)
    side = int(min(HEADROOM * (high - low).max(), *frame.shape[:2]))
    centre = (low + high) / 2 - (0, 0.12 * (high - low)[1])  # moved up: landmarks end at the brow, below the hair
    left, top = (
        int(np.clip(middle - side / 2, 0, length - side))
        for middle, length in zip(centre, frame.shape[1::-1], strict=True)
    )
    cut = frame[top : top + side, left : left + side]
    small = cv2.resize(cut, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])
