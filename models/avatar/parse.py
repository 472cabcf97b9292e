"""Which part of a crop is pasted back: a soft mask of the lower face from landmarks. Knows no pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.track import smooth
from models.types import CROP_PX, Float32, UInt8

HALF = CROP_PX // 2  # the UNet sees the rows above; those from here on are generated
JAW = slice(1, 16)  # iBUG jaw line, ear to ear
DENSE = 2  # the outline is drawn at twice the crop's resolution
SHIFT_BITS = 4  # cv2.fillPoly's sub-pixel bits
STILL_PX = 4.0  # jaw lines that stay this close (rms) to their median share one mask
MASK_SMOOTH_S = 0.2  # a moving mask follows the jaw's slow motion, not its noise


@dataclass(frozen=True, slots=True)
class MaskShape:
    """Sizes in crop px. The mask is 0 outside the outer and 255 inside the inner outline, and smooth between."""

    top_fade: float = 26.0  # rows from the first generated one to full weight: ends above the upper lip
    side_in: float = 6.0  # the outer outline runs this far inside the cheeks: hair and background stay the frame's
    side_fade: float = 22.0
    chin_out: float = 14.0  # the outer outline runs this far below the chin: room for a jaw that opens
    chin_fade: float = 8.0
    border: float = 1.0  # crop px that stay free at its lower edge


def lower_face_mask(landmarks: npt.NDArray[np.floating], shape: MaskShape | None = None) -> UInt8:
    """Paste weight, uint8 `(256, 256)`, of landmarks `(68, 2)` in crop px: 0 in the upper half, follows the jaw."""
    shape = shape or MaskShape()
    jaw = np.asarray(landmarks, np.float64)[JAW]  # (15, 2)
    outer = _outline(jaw, -shape.side_in, shape.chin_out, HALF, CROP_PX - 1 - shape.border)
    inner = _outline(
        jaw,
        -shape.side_in - shape.side_fade,
        shape.chin_out - shape.chin_fade,
        HALF + shape.top_fade,
        CROP_PX - 1 - shape.border - shape.chin_fade,
    )
    inside, beyond = _fill(outer), 255 - _fill(inner)
    from_outer = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    to_inner = cv2.distanceTransform(beyond, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    t = from_outer / np.maximum(from_outer + to_inner, 1e-6)
    weight = cv2.resize(t * t * (3 - 2 * t), (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA)
    weight[:HALF] = 0
    return cast(UInt8, np.rint(255 * weight).astype(np.uint8))


def masks_of(landmarks: Float32, fps: float, shape: MaskShape | None = None) -> tuple[UInt8, npt.NDArray[np.int32]]:
    """Masks `(u, 256, 256)` of landmarks `(n, 68, 2)` in crop px, and which belongs to each frame `(n,)`.

    A head that keeps its pose in the crop has one mask for all frames (u = 1), so nothing can flicker; one that turns
    has a mask a frame, whose outline is smoothed over time.
    """
    n = len(landmarks)
    median = np.median(landmarks, axis=0)
    moved = np.sqrt(((landmarks[:, JAW] - median[JAW]) ** 2).sum(-1).mean(-1))  # (n,)
    if np.percentile(moved, 95) <= STILL_PX:
        return lower_face_mask(median, shape)[None], np.zeros(n, np.int32)
    steady = smooth(landmarks.reshape(n, -1).astype(np.float64), np.ones(n), MASK_SMOOTH_S * fps).reshape(n, 68, 2)
    return np.stack([lower_face_mask(points, shape) for points in steady]), np.arange(n, dtype=np.int32)


def _outline(
    jaw: npt.NDArray[np.float64], side: float, chin: float, top: float, bottom: float
) -> npt.NDArray[np.float64]:
    """The jaw line moved outwards by `side` px at the cheeks and `chin` px at the chin, within rows `top` … `bottom`.

    Between cheek and chin, iBUG's points 3 to 6, the one goes over into the other.
    """
    along = np.gradient(jaw, axis=0)
    outwards = np.stack([-along[:, 1], along[:, 0]], 1)
    outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-6)
    if outwards[len(jaw) // 2, 1] < 0:  # the jaw runs from the image's left to its right; at the chin, down is out
        outwards = -outwards
    down = np.interp(np.abs(np.arange(len(jaw)) - len(jaw) // 2), [2.0, 5.0], [1.0, 0.0])[:, None]
    moved = jaw + outwards * (side + (chin - side) * down)
    moved = np.clip(moved, [0, top], [CROP_PX - 1, bottom])
    below = moved[moved[:, 1] > top]
    if len(below) < 3:
        return np.empty((0, 2))
    return np.concatenate([[[below[0, 0], top]], _rounded(below), [[below[-1, 0], top]]])


def _rounded(line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """An open line with its corners cut twice (Chaikin 1974); its ends stay."""
    for _ in range(2):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        line = np.concatenate([line[:1], np.stack([near, far], 1).reshape(-1, 2), line[-1:]])
    return line


def _fill(outline: npt.NDArray[np.float64]) -> UInt8:
    """The inside of an outline in crop px, uint8 0/255 `(512, 512)`."""
    canvas = np.zeros((CROP_PX * DENSE, CROP_PX * DENSE), np.uint8)
    if len(outline):
        points = np.rint(((outline + 0.5) * DENSE - 0.5) * (1 << SHIFT_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [points], 255, lineType=cv2.LINE_8, shift=SHIFT_BITS)
    return canvas
