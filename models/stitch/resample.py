"""Resamples a face crop, or its mask, onto the frame's pixels: sub-pixel and without aliasing.

A crop that is cut out and pasted back unchanged should reproduce the frame. A crop with more pixels than the frame is
filtered by a low-pass, flat up to the frame's highest frequency, then resampled by Lanczos-4. A crop with fewer pixels
is resampled by cubic interpolation: Lanczos costs four times as much there and gains a third of a grey level.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import CROP_PX, Float32, UInt8

Float64 = npt.NDArray[np.float64]
Image = TypeVar("Image", Float32, UInt8)

# In units of the frame's highest frequency. Content between 1 and 1.6 aliases to above 0.4, increasingly attenuated.
CUTOFF, TRANSITION = 1.3, 0.6
STOP_DB = 45.0  # stopband attenuation; the passband ripple is then 0.6 %
MOST_MINIFIED = 8.0  # limits the length of the kernel
STEPS = 32  # sub-pixel positions per pixel, as OpenCV's INTER_TAB_SIZE
MARGIN_PX = 5  # Lanczos-4 reads four pixels on each side


def warp_face(face: UInt8, transform: npt.NDArray[np.floating], left: int, top: int, width: int, height: int) -> UInt8:
    """The crop `(s, s, 3)` resampled on the part of the frame at (left, top), `(height, width, 3)`.

    transform: `(2, 3)`, frame px → 256 px crop. Outside the crop, its border is repeated.
    """
    return warp_image(
        face, scaled(np.asarray(transform, np.float64), face.shape[0] / CROP_PX), left, top, width, height
    )


def warp_image(image: Image, matrix: Float64, left: int, top: int, width: int, height: int) -> Image:
    """As `warp_face`, for an image `(h, w)` or `(h, w, c)` of any size. matrix: `(2, 3)`, frame px → image px."""
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))  # face px per frame px
    if scale > CUTOFF:
        kernel = low_pass(round(min(scale, MOST_MINIFIED), 2))
        image, matrix = _filtered(image, matrix, kernel, (left, top, width, height))
    x, y = positions(matrix, left, top, width, height)
    kernel_of = cv2.INTER_LANCZOS4 if scale > CUTOFF else cv2.INTER_CUBIC
    return cast(Image, cv2.remap(image, x, y, kernel_of, borderMode=cv2.BORDER_REPLICATE))


def warp_plane(plane: Float32, matrix: Float64, left: int, top: int, width: int, height: int) -> Float32:
    """As `warp_image`, in two thirds of the time: positions are rounded to 1 / 32 px from (left, top) on."""
    if math.sqrt(abs(float(np.linalg.det(matrix[:, :2])))) > CUTOFF:
        return warp_image(plane, matrix, left, top, width, height)
    return warp_part(plane, matrix, left, top, width, height, cv2.INTER_CUBIC, cv2.BORDER_REPLICATE)


def positions(matrix: Float64, left: int, top: int, width: int, height: int) -> tuple[Float32, Float32]:
    """The image coordinates of each pixel of a part of the frame, `(height, width)` each, rounded to 1 / 32 px.

    OpenCV rounds in the same way. Rounding here makes the result independent of where the part begins.
    """
    x, y = np.arange(left, left + width, dtype=np.float64), np.arange(top, top + height, dtype=np.float64)[:, None]
    maps = []
    for row in matrix * STEPS:  # exact, since STEPS is a power of two
        place = row[0] * x + (row[1] * y + row[2])
        maps.append(np.multiply(np.rint(place, out=place), 1 / STEPS, dtype=np.float32, casting="same_kind"))
    return maps[0], maps[1]


def warp_part(
    image: Image, matrix: Float64, left: int, top: int, width: int, height: int, kernel: int, border: int
) -> Image:
    """The part of the frame at (left, top), read from `image` through `matrix` (frame px → image px)."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (left, top)
    flags = kernel | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, shifted, (int(width), int(height)), flags=flags, borderMode=border)  # type: ignore[no-any-return]


def scaled(matrix: Float64, factor: float) -> Float64:
    """`matrix` for an image `factor` times as large: pixel centres map as (x + 0.5) · factor − 0.5."""
    out = matrix * factor
    out[:, 2] += (factor - 1) / 2
    return out


@lru_cache(maxsize=256)
def low_pass(scale: float) -> Float32:
    """A Kaiser-windowed sinc low-pass for a frame with 1 / `scale` of the crop's resolution, `(2 k + 1,)`.

    Length and shape follow Kaiser's formulas (Oppenheim and Schafer, Discrete-Time Signal Processing, 7.5).
    """
    cutoff, transition = CUTOFF * 0.5 / scale, TRANSITION * 0.5 / scale  # cycles per crop px
    half = math.ceil((STOP_DB - 8) / (2.285 * 2 * math.pi * transition) / 2)
    beta = 0.5842 * (STOP_DB - 21) ** 0.4 + 0.07886 * (STOP_DB - 21)
    at = np.arange(-half, half + 1)
    taps = np.sinc(2 * cutoff * at) * np.kaiser(2 * half + 1, beta)
    return cast(Float32, (taps / taps.sum()).astype(np.float32))


def _filtered(image: Image, matrix: Float64, kernel: Float32, part: tuple[int, int, int, int]) -> tuple[Image, Float64]:
    """The filtered part of `image` that is needed, and the matrix relative to it."""
    left, top, width, height = part
    corners = np.array(
        [[left, top, 1], [left + width, top, 1], [left, top + height, 1], [left + width, top + height, 1]]
    )
    places = corners @ matrix.T
    size = np.array(image.shape[1::-1])
    x1, y1 = np.clip(np.floor(places.min(0)).astype(int) - MARGIN_PX, 0, size - 1).tolist()
    x2, y2 = np.clip(np.ceil(places.max(0)).astype(int) + MARGIN_PX, 1, size).tolist()
    if x2 <= x1 or y2 <= y1:
        return image, matrix
    moved = matrix.copy()
    moved[:, 2] -= (x1, y1)
    view = image[y1:y2, x1:x2]  # sepFilter2D also reads the pixels around a view, as intended
    return cast(Image, cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)), moved
