"""Lays faces onto the FFHQ template and back, with one warp each way.

The template is that of facexlib's FaceRestoreHelper at 512 px, which GFPGAN, CodeFormer and RestoreFormer expect: eye
centres, tip of the nose, corners of the mouth, image left first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.smoothing import SMOOTH_S, smooth
from models.avatar.track import GAP_WEIGHT
from models.errors import InputError
from models.geometry import apply, as_complex, fit_similarity, similarity_matrix, warp
from models.types import CROP_PX, RESTORED_PX, Float32, UInt8

Float64 = npt.NDArray[np.float64]

FFHQ_512 = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
OUTSIDE = (135, 133, 132)  # facexlib's grey, where the template reaches beyond the picture
EDGE_PX = 24  # of 512: width over which a pasted square fades out


def five_points(landmarks68: npt.NDArray[Any]) -> Float32:
    """Return the template's five points `(…, 5, 2)` of iBUG's `(…, 68, 2)`: eye centres, nose tip, mouth corners."""
    eyes = [landmarks68[..., first : first + 6, :].mean(-2) for first in (36, 42)]
    return np.stack([*eyes, *(landmarks68[..., k, :] for k in (30, 48, 54))], -2).astype(np.float32)


def smoothed_points(
    landmarks68: npt.NDArray[Any], transforms: npt.NDArray[Any], has_face: npt.NDArray[np.bool_], fps: float
) -> Float32:
    """Return the five points of every frame of a prepared avatar, `(n, 5, 2)` in px of its 256 px crops, smoothed.

    landmarks68: `(n, 68, 2)` in frame px. transforms: `(n, 2, 3)`, frame px → crop px. The transforms are already
    smooth over time and the landmarks are not: without smoothing, the alignment would jitter where the crop does not.
    """
    points = apply(np.asarray(transforms, np.float64), five_points(landmarks68))  # (n, 5, 2)
    weights = np.where(has_face, 1.0, GAP_WEIGHT)
    smoothed = smooth(points.reshape(-1, 10), weights, SMOOTH_S * fps)
    return smoothed.reshape(-1, 5, 2).astype(np.float32)


def to_template(points: npt.NDArray[Any], side: int = RESTORED_PX) -> Float64:
    """Return the least-squares similarity `(…, 2, 3)` from points `(…, 5, 2)` to the template of `side` px."""
    factor = side / RESTORED_PX
    target = FFHQ_512 * factor + (factor - 1) / 2  # pixel centres map as (x + 0.5) · factor − 0.5
    return similarity_matrix(*fit_similarity(as_complex(points), as_complex(target)))


def upsampled(transform: npt.NDArray[Any], factor: float) -> Float64:
    """Return `transform` (…, 2, 3), px → template px, for a picture `factor` times as large."""
    result = np.array(transform, np.float64)
    result[..., :2] /= factor
    result[..., 2] -= result[..., :2].sum(-1) * (factor - 1) / 2
    return result


def composed(first: npt.NDArray[Any], then: npt.NDArray[Any]) -> Float64:
    """Return the transform `(2, 3)` that applies `first` and then `then`."""
    linear = np.asarray(then, np.float64)[:, :2]
    both = linear @ np.asarray(first, np.float64)
    both[:, 2] += then[:, 2]
    return both


def align(face: UInt8, transform: Float64, around: UInt8 | None = None) -> UInt8:
    """Warp `face` (s, s, 3) onto the template, `(512, 512, 3)`; `transform` (2, 3) is face px → template px.

    around: `(512, 512, 3)`, the picture where the template reaches beyond the face's; None is facexlib's grey.
    """
    size = (RESTORED_PX, RESTORED_PX)
    grey = np.full((*size, 3), OUTSIDE, np.uint8)
    # A soft edge towards `around`, which continues the face; a hard edge towards grey, which does not.
    covered = np.ones(face.shape[:2], np.float32) if around is None else soft_square(face.shape[0])
    inside = cv2.warpAffine(covered, transform, size)
    under = grey if around is None else around
    return cast(UInt8, cv2.blendLinear(warped(face, transform), under, inside, 1 - inside))


def warped(face: UInt8, transform: Float64) -> UInt8:
    """Return a picture on the template, `(512, 512, 3)`, its border pixels repeated outside it.

    Cubic where it is enlarged, as a face nearly always is: four times as fast as Lanczos-4. Otherwise without aliasing.
    """
    if np.linalg.det(transform[:, :2]) < 1:
        return warp(face, transform, RESTORED_PX)
    size = (RESTORED_PX, RESTORED_PX)
    return cast(UInt8, cv2.warpAffine(face, transform, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def paste_aligned(under: UInt8, aligned: UInt8, transform: Float64, strength: float) -> UInt8:
    """Paste `aligned` (512, 512, 3) over `under` (512, 512, 3) with a soft edge and the weight `strength`, 0 to 1.

    transform: px of `under` → template px. Both squares fade at their borders, so that no edge is visible.
    """
    size, back = (RESTORED_PX, RESTORED_PX), cv2.WARP_INVERSE_MAP
    # WARP_INVERSE_MAP takes the transform from the result's px to the source's: here under → template.
    over = cv2.warpAffine(aligned, transform, size, flags=cv2.INTER_CUBIC | back, borderMode=cv2.BORDER_REPLICATE)
    share = cv2.warpAffine(soft_square(), transform, size, flags=cv2.INTER_LINEAR | back)
    share = share * soft_square() * np.float32(strength)
    return cast(UInt8, cv2.blendLinear(over, under, share, 1 - share))


@cache
def soft_square(side: int = RESTORED_PX, edge: float = EDGE_PX) -> Float32:
    """Return weights `(side, side)` that rise smoothly from 0 at the border to 1 within `edge` px (of 512)."""
    ramp = np.clip((np.minimum(np.arange(side), np.arange(side)[::-1])) / (edge * side / RESTORED_PX), 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    weights = np.minimum.outer(ramp, ramp).astype(np.float32)
    weights.flags.writeable = False
    return weights


def restore_aligned(
    faces: UInt8,
    strength: Any,
    landmarks: npt.NDArray[Any] | None,
    run: Callable[[UInt8], UInt8],
    batch: int,
    around: UInt8 | None = None,
) -> UInt8:
    """Implement `restore` for an engine that takes aligned 512 px faces: upsample, align, `run`, paste back.

    faces: RGB uint8 `(n, s, s, 3)`, s = 256 or 512. landmarks: `(n, 5, 2)` in px of `faces`; None: the faces fill the
    template already. around: `(n, 512, 512, 3)`, see `align`. run: RGB uint8 `(m, 512, 512, 3)` → the same shape, with
    m at most `batch`. strength: a number, or one per face; 0 is bicubic upsampling. Raises InputError for another
    shape, type or strength.
    """
    check_faces((faces := np.asarray(faces)).shape, faces.dtype, strength, landmarks)
    strengths = np.broadcast_to(strength, len(faces))
    factor = RESTORED_PX / faces.shape[1]
    out = np.empty((len(faces), RESTORED_PX, RESTORED_PX, 3), np.uint8)
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch]
        large = np.stack([enlarged(face) for face in part])  # (m, 512, 512, 3)
        if not strengths[start : start + batch].any():
            out[start : start + batch] = large
            continue
        transforms = None if landmarks is None else to_template(landmarks[start : start + batch])  # (m, 2, 3)
        beyond = None if around is None else around[start:]
        aligned = large if transforms is None else _aligned(part, transforms, beyond)
        restored = run(aligned)
        for k, share in enumerate(strengths[start : start + batch].tolist()):
            out[start + k] = (
                cv2.addWeighted(restored[k], share, large[k], 1 - share, 0)
                if transforms is None
                else paste_aligned(large[k], restored[k], upsampled(transforms[k], factor), share)
            )
    return out


def _aligned(faces: UInt8, transforms: Float64, around: UInt8 | None) -> UInt8:
    """Faces `(m, s, s, 3)` on the template, `(m, 512, 512, 3)`. The first m of `around` belong to them."""
    pairs = enumerate(zip(faces, transforms, strict=True))
    return np.stack([align(face, transform, None if around is None else around[k]) for k, (face, transform) in pairs])


def enlarged(face: UInt8) -> UInt8:
    """Return a face `(256, 256, 3)` as `(512, 512, 3)`, without restoration; one of 512 px as it is."""
    if face.shape[0] == RESTORED_PX:
        return face
    return cast(UInt8, cv2.resize(face, (RESTORED_PX, RESTORED_PX), interpolation=cv2.INTER_CUBIC))


def check_faces(shape: tuple[int, ...], dtype: Any, strength: Any, landmarks: npt.NDArray[Any] | None) -> None:
    """Raise InputError unless `restore_aligned` can take faces of this shape and type, and the other arguments."""
    square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    if not square or shape[1] not in (CROP_PX, RESTORED_PX) or dtype != np.uint8:
        raise InputError(
            f"Faces of shape {shape} and type {dtype} cannot be restored.",
            f"Pass RGB uint8 (n, {CROP_PX}, {CROP_PX}, 3) or (n, {RESTORED_PX}, {RESTORED_PX}, 3).",
        )
    check_strength(strength)
    if landmarks is not None and np.shape(landmarks) != (shape[0], 5, 2):
        raise InputError(
            f"The landmarks have shape {np.shape(landmarks)} for {shape[0]} faces.",
            "Pass five points per face: eye centres, nose tip, mouth corners.",
        )


def check_strength(strength: Any) -> None:
    """Raise InputError unless `strength`, a number or several, is between 0 and 1."""
    if not np.all((np.asarray(strength) >= 0) & (np.asarray(strength) <= 1)):
        raise InputError(
            f"The strength {strength} is not between 0 and 1.", "Use 0 for plain upsampling, 1 for the full model."
        )
