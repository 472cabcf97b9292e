"""Cuts a square out of a frame along a transform, sub-pixel, without aliasing. Knows no faces."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import CROP_PX, Box, Float32, UInt8

MAX_SUPERSAMPLING = 8  # beyond it a face is eight times larger than its crop
EXPAND = 1.5  # side of the parsed square over the longer side of MuseTalk's box
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


def int_box(box: Iterable[Any]) -> Box:
    """Four edges of any whole-number type, an array's too, as Python's ints."""
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return x1, y1, x2, y2


def crop_box_of(box: Box, expand: float = EXPAND) -> Box:
    """The square around a box's middle, `expand` times its longer side, halves cut; may reach outside the frame."""
    x1, y1, x2, y2 = int_box(box)
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    half = int(max(x2 - x1, y2 - y1) // 2 * expand)
    return x - half, y - half, x + half, y + half


def crop_padded(frame_rgb: UInt8, box: Box) -> UInt8:
    """The part of a frame `(h, w, 3)` in a box, a copy; black outside the frame."""
    x1, y1, x2, y2 = box
    out = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    inside, here = overlap(frame_rgb.shape[:2], box)
    out[here] = frame_rgb[inside]
    return out


def overlap(size: tuple[int, ...], box: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a box lies in a picture of (height, width), as slices of the picture, and of the box's own content."""
    x1, x2 = (min(max(edge, 0), size[1]) for edge in (box[0], box[2]))
    y1, y2 = (min(max(edge, 0), size[0]) for edge in (box[1], box[3]))
    return (
        (slice(y1, y2), slice(x1, x2)),
        (slice(y1 - box[1], y2 - box[1]), slice(x1 - box[0], x2 - box[0])),
    )
