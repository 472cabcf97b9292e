"""Brings a face crop, or its mask, onto the frame's pixels, sub-pixel and without aliasing. Knows no blends.

A crop that was cut out and comes back untouched should be the frame again. Where the crop has more pixels than the
frame it comes back by Lanczos-4, behind a low-pass that is flat up to what the frame can show. A larger face comes back
by cubic interpolation: Lanczos costs four times as much there, and gains a third of a grey level.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import CROP_PX, Float32, UInt8

Float64 = npt.NDArray[np.float64]

# In units of the frame's highest frequency: what lies between 1 and 1.6 of it folds back to above 0.4, ever weaker.
CUTOFF, TRANSITION = 1.3, 0.6
STOP_DB = 45.0  # also the passband's ripple: 0.6 %
MOST_MINIFIED = 8.0  # beyond, the kernel stops growing
STEPS = 32  # positions a pixel: OpenCV's INTER_TAB_SIZE
MARGIN_PX = 5  # Lanczos-4 looks four pixels to either side


def warp_face(face: UInt8, transform: npt.NDArray[np.floating], left: int, top: int, width: int, height: int) -> UInt8:
    """The part of the frame at (left, top) as a crop `(s, s, 3)` shows it, `(height, width, 3)`.

    transform: `(2, 3)`, frame px → 256 px crop. Beyond the crop its border is repeated.
    """
    matrix = scaled(np.asarray(transform, np.float64), face.shape[0] / CROP_PX)
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))  # face px per frame px
    if scale > CUTOFF:
        kernel = low_pass(round(min(scale, MOST_MINIFIED), 2))
        face, matrix = _filtered(face, matrix, kernel, (left, top, width, height))
    x, y = positions(matrix, left, top, width, height)
    kernel_of = cv2.INTER_LANCZOS4 if scale > CUTOFF else cv2.INTER_CUBIC
    return cast(UInt8, cv2.remap(face, x, y, kernel_of, borderMode=cv2.BORDER_REPLICATE))


def positions(matrix: Float64, left: int, top: int, width: int, height: int) -> tuple[Float32, Float32]:
    """Where in the image each pixel of a part of the frame lies, `(height, width)` each, to 1 / 32 px.

    OpenCV rounds so, too; done here it does not depend on where the part begins, so any other path can do the same.
    """
    x, y = np.arange(left, left + width, dtype=np.float64), np.arange(top, top + height, dtype=np.float64)[:, None]
    maps = []
    for row in matrix * STEPS:  # a power of two: exact
        place = row[0] * x + (row[1] * y + row[2])
        maps.append(np.rint(place, out=place).astype(np.float32) * np.float32(1 / STEPS))
    return maps[0], maps[1]


def warp_part(
    image: UInt8, matrix: Float64, left: int, top: int, width: int, height: int, kernel: int, border: int
) -> UInt8:
    """The part of the frame at (left, top) as `matrix` (frame px → image px) finds it in `image`."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (left, top)
    flags = kernel | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, shifted, (int(width), int(height)), flags=flags, borderMode=border)  # type: ignore[no-any-return]


def scaled(matrix: Float64, factor: float) -> Float64:
    """`matrix` onto a crop `factor` times as large: pixel centres map as (x + 0.5) · factor − 0.5."""
    out = matrix * factor
    out[:, 2] += (factor - 1) / 2
    return out


@lru_cache(maxsize=256)
def low_pass(scale: float) -> Float32:
    """A Kaiser-windowed sinc that passes what a frame of 1 / `scale` of the crop's size can show, `(2 k + 1,)`.

    Length and shape by Kaiser's formulas (Oppenheim and Schafer, Discrete-Time Signal Processing, 7.5).
    """
    cutoff, transition = CUTOFF * 0.5 / scale, TRANSITION * 0.5 / scale  # cycles a crop px
    half = math.ceil((STOP_DB - 8) / (2.285 * 2 * math.pi * transition) / 2)
    beta = 0.5842 * (STOP_DB - 21) ** 0.4 + 0.07886 * (STOP_DB - 21)
    at = np.arange(-half, half + 1)
    taps = np.sinc(2 * cutoff * at) * np.kaiser(2 * half + 1, beta)
    return cast(Float32, (taps / taps.sum()).astype(np.float32))


def _filtered(face: UInt8, matrix: Float64, kernel: Float32, part: tuple[int, int, int, int]) -> tuple[UInt8, Float64]:
    """The rows and columns of `face` that the part needs, filtered, and the matrix onto them."""
    left, top, width, height = part
    corners = np.array(
        [[left, top, 1], [left + width, top, 1], [left, top + height, 1], [left + width, top + height, 1]]
    )
    places = corners @ matrix.T
    side = face.shape[0]
    x1, y1 = np.clip(np.floor(places.min(0)).astype(int) - MARGIN_PX, 0, side - 1).tolist()
    x2, y2 = np.clip(np.ceil(places.max(0)).astype(int) + MARGIN_PX, 1, side).tolist()
    if x2 <= x1 or y2 <= y1:
        return face, matrix
    moved = matrix.copy()
    moved[:, 2] -= (x1, y1)
    view = face[y1:y2, x1:x2]  # sepFilter2D looks at what lies around a view, as it should
    return cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE), moved
