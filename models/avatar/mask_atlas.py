"""The masks of an avatar as one picture of tiles."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from models.types import CROP_PX, Int32, UInt8

COLUMNS = 16


def atlas_of(masks: UInt8) -> UInt8:
    """Masks `(u, 256, 256)` → one picture of 256 px tiles, at most 16 per row."""
    columns = min(len(masks), COLUMNS)
    rows = -(-len(masks) // columns)
    tiles = np.zeros((rows * columns, CROP_PX, CROP_PX), np.uint8)
    tiles[: len(masks)] = masks
    grid = tiles.reshape(rows, columns, CROP_PX, CROP_PX).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grid).reshape(rows * CROP_PX, columns * CROP_PX)


def tiles_of(png: bytes, count: int, index: Int32) -> UInt8:
    """The masks of all frames, read-only `(n, 256, 256)`. A single mask is broadcast, without copies."""
    atlas = cast(UInt8, cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE))
    rows, columns = atlas.shape[0] // CROP_PX, atlas.shape[1] // CROP_PX
    tiles = atlas.reshape(rows, CROP_PX, columns, CROP_PX).transpose(0, 2, 1, 3).reshape(-1, CROP_PX, CROP_PX)
    if count == 1:
        return np.broadcast_to(tiles[0], (len(index), CROP_PX, CROP_PX))
    masks: UInt8 = tiles[index]
    masks.flags.writeable = False
    return masks
