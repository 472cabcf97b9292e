"""Draws a contact sheet of a prepared avatar: landmarks, crops and paste masks, for a person to check."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.geometry import apply, invert, warp
from models.types import CROP_PX, Float32, UInt8

COLUMNS = 4
GREEN, AMBER, RED, CYAN = (80, 255, 120), (255, 190, 40), (255, 70, 70), (60, 230, 255)


def pick_frames(n: int, count: int) -> list[int]:
    """Return up to `count` different frame indices spread evenly over `n` frames."""
    return sorted(set(np.linspace(0, n - 1, min(n, count)).round().astype(int).tolist()))


def cell(frame: UInt8, transform: Float32, landmarks: Float32, mask: UInt8, has_face: bool, index: int) -> UInt8:
    """Draw one frame beside its crop, RGB `(256, w, 3)`.

    The crop's outline is amber (red without a face), landmarks are green, the mask's 1 %, 50 % and 99 % contours cyan.
    """
    scale = CROP_PX / frame.shape[0]
    width = max(1, round(frame.shape[1] * scale))
    left = cv2.resize(frame, (width, CROP_PX), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    corners = np.array([[-0.5, -0.5], [CROP_PX - 0.5, -0.5], [CROP_PX - 0.5, CROP_PX - 0.5], [-0.5, CROP_PX - 0.5]])
    quad = apply(invert(transform), corners)
    cv2.polylines(left, [_scaled(quad, scale)], True, AMBER if has_face else RED, 1, cv2.LINE_AA, 4)
    for x, y in _scaled(landmarks, scale) if has_face else ():
        cv2.circle(left, (int(x), int(y)), 1 << 4, GREEN, -1, cv2.LINE_AA, 4)
    cv2.putText(left, str(index), (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, CYAN, 1, cv2.LINE_AA)
    right = warp(frame, transform)
    for level in (2, 127, 252):
        outlines, _ = cv2.findContours((mask > level).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(right, outlines, -1, CYAN if has_face else RED, 1)
    return np.hstack([left, right])


def sheet(cells: list[UInt8]) -> UInt8:
    """Arrange cells of one size in one RGB picture, four per row."""
    columns = min(COLUMNS, len(cells))
    blank = np.full_like(cells[0], 24)
    padded = cells + [blank] * (-len(cells) % columns)
    rows = [np.hstack(padded[k : k + columns]) for k in range(0, len(padded), columns)]
    return np.vstack(rows)


def _scaled(points: npt.NDArray[np.floating], scale: float) -> npt.NDArray[np.int32]:
    """Frame px → thumbnail px in sixteenths, for cv2's drawing functions with shift 4."""
    return cast(npt.NDArray[np.int32], np.rint(((points + 0.5) * scale - 0.5) * 16).astype(np.int32))
