"""Cuts a square out of a frame along a transform, sub-pixel, without aliasing. Knows no faces."""

from __future__ import annotations

import math
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import CROP_PX, Float32, UInt8

MAX_SUPERSAMPLING = 8  # beyond it a face is eight times larger than its crop
SLACK = 0.15  # a face larger than its crop by this share loses nothing yet that averaging would save


def warp(frame: UInt8, transform: Float32 | npt.NDArray[np.float64], size: int = CROP_PX, fine: bool = True) -> UInt8:
    """The `size`² picture that `transform` (2, 3), frame px → crop px, centres at whole numbers, maps out of `frame`.

    A face larger than its crop is sampled `ceil(1 / scale - SLACK)` times as densely and averaged, so that nothing
    aliases; a smaller one is interpolated by Lanczos-4 (`fine`) or linearly. Outside the frame its border is repeated.
    """
    matrix = np.asarray(transform, np.float64)
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    assert scale > 0, transform
    dense = min(MAX_SUPERSAMPLING, math.ceil(1 / scale - SLACK)) if scale < 1 else 1
    matrix = dense * matrix
    matrix[:, 2] += (
        dense - 1
    ) / 2  # centres: sub-sample j of crop px i lies at (i + ½)·dense − ½ + (j − (dense − 1) / 2)
    method = cv2.INTER_LANCZOS4 if fine else cv2.INTER_LINEAR
    side = size * dense
    crop = cv2.warpAffine(frame, matrix, (side, side), flags=method, borderMode=cv2.BORDER_REPLICATE)
    if dense > 1:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return cast(UInt8, crop)


def apply(transform: npt.NDArray[Any], points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Map points `(…, 2)` by a transform `(2, 3)`, or by one each `(n, 2, 3)` for points `(n, …, 2)`."""
    linear, shift = transform[..., :2], transform[..., 2]
    if transform.ndim == 2:
        return cast(npt.NDArray[Any], points @ linear.T + shift)
    return cast(npt.NDArray[Any], np.einsum("nij,nkj->nki", linear, points) + shift[:, None])


def invert(transform: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The transform `(2, 3)` or transforms `(n, 2, 3)` of the way back."""
    linear = np.linalg.inv(np.asarray(transform, np.float64)[..., :2])
    shift = -np.einsum("...ij,...j->...i", linear, np.asarray(transform, np.float64)[..., 2])
    return np.concatenate([linear, shift[..., None]], axis=-1)
