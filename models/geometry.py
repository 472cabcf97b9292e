"""Shared 2-D geometry: affine transforms, crops along a transform, similarity fits, and integer boxes.

A transform is a matrix `(2, 3)` on pixel coordinates in which pixel centres have whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import CROP_PX, Box, Float32, UInt8

Complexes = npt.NDArray[np.complex128]

MAX_SUPERSAMPLING = 8  # a face more than 8 times larger than its crop is sampled no more densely
SUPERSAMPLING_SLACK = 0.15  # a face up to 15 % larger than its crop is not supersampled: averaging would gain nothing
EXPAND = 1.5  # side of the square that MuseTalk's face parser sees over the longer side of MuseTalk's box


def warp(frame: UInt8, transform: Float32 | npt.NDArray[np.float64], size: int = CROP_PX, fine: bool = True) -> UInt8:
    """Cut the `size` × `size` picture that `transform` (2, 3), frame px → crop px, maps out of `frame`, sub-pixel.

    A face larger than its crop is sampled `ceil(1 / scale - SUPERSAMPLING_SLACK)` times as densely and averaged, so
    that nothing aliases. A smaller one is interpolated by Lanczos-4 (`fine`) or linearly. Outside the frame, its border
    pixels are repeated.
    """
    matrix = np.asarray(transform, np.float64)
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    assert scale > 0, transform
    dense = min(MAX_SUPERSAMPLING, math.ceil(1 / scale - SUPERSAMPLING_SLACK)) if scale < 1 else 1
    matrix = dense * matrix
    # Sub-sample j of crop px i lies at (i + ½)·dense − ½ + (j − (dense − 1) / 2): the mean of i's samples is at i.
    matrix[:, 2] += (dense - 1) / 2
    method = cv2.INTER_LANCZOS4 if fine else cv2.INTER_LINEAR
    side = size * dense
    crop = cv2.warpAffine(frame, matrix, (side, side), flags=method, borderMode=cv2.BORDER_REPLICATE)
    if dense > 1:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return cast(UInt8, crop)


def apply(transform: npt.NDArray[Any], points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Map points `(…, 2)` by one transform `(2, 3)`, or points `(n, …, 2)` by one transform each, `(n, 2, 3)`."""
    linear, shift = transform[..., :2], transform[..., 2]
    if transform.ndim == 2:
        return cast(npt.NDArray[Any], points @ linear.T + shift)
    return cast(npt.NDArray[Any], np.einsum("nij,nkj->nki", linear, points) + shift[:, None])


def invert(transform: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the inverse of a transform `(2, 3)` or of each of `(n, 2, 3)`."""
    linear = np.linalg.inv(np.asarray(transform, np.float64)[..., :2])
    shift = -np.einsum("...ij,...j->...i", linear, np.asarray(transform, np.float64)[..., 2])
    return np.concatenate([linear, shift[..., None]], axis=-1)


def as_complex(points: npt.NDArray[Any]) -> Complexes:
    """Return points `(…, 2)` as complex numbers x + iy, `(…,)`, on which a similarity is z → factor · z + shift."""
    return np.asarray(points[..., 0].astype(np.float64) + 1j * points[..., 1])


def fit_similarity(source: Complexes, target: Complexes) -> tuple[Complexes, Complexes]:
    """Fit the least-squares similarity from points `source` to `target`, both `(…, k)` complex and broadcast together.

    Returns `factor` (rotation and scale) and `shift`, both `(…,)`.
    """
    source_mean, target_mean = source.mean(-1, keepdims=True), target.mean(-1, keepdims=True)
    centred = source - source_mean
    factor = (centred.conj() * (target - target_mean)).sum(-1) / (np.abs(centred) ** 2).sum(-1)
    return factor, target_mean[..., 0] - factor * source_mean[..., 0]


def similarity_matrix(factor: Complexes, shift: Complexes) -> npt.NDArray[np.float64]:
    """Return the similarity z → factor · z + shift, arguments `(…,)`, as transforms `(…, 2, 3)`."""
    rows = [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def int_box(box: Iterable[Any]) -> Box:
    """Return the four edges of a box as Python ints; they may have any integer type, or be an array."""
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return x1, y1, x2, y2


def crop_box_of(box: Box, expand: float = EXPAND) -> Box:
    """Return the square around a box's centre, `expand` times its longer side; it may reach outside the frame.

    Halves are rounded down, as in `get_crop_box` of MuseTalk v1.5's musetalk/utils/blending.py.
    """
    x1, y1, x2, y2 = int_box(box)
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    half = int(max(x2 - x1, y2 - y1) // 2 * expand)
    return x - half, y - half, x + half, y + half


def crop_padded(frame_rgb: UInt8, box: Box) -> UInt8:
    """Copy the part of a frame `(h, w, 3)` inside a box; black outside the frame."""
    x1, y1, x2, y2 = box
    out = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    inside, here = overlap(frame_rgb.shape[:2], box)
    out[here] = frame_rgb[inside]
    return out


def overlap(size: tuple[int, ...], box: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where a box overlaps a picture of (height, width): as slices of the picture, and of the box's content."""
    x1, x2 = (min(max(edge, 0), size[1]) for edge in (box[0], box[2]))
    y1, y2 = (min(max(edge, 0), size[0]) for edge in (box[1], box[3]))
    return (
        (slice(y1, y2), slice(x1, x2)),
        (slice(y1 - box[1], y2 - box[1]), slice(x1 - box[0], x2 - box[0])),
    )
