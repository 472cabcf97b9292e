"""Pastes a face into the planes of a YUV picture, without converting the frame to RGB and back.

The same paste as `Paster.paste_into` in mode `feather`, for a third of its time: luma is resampled and blended at full
resolution, chroma at half. Colour is matched in the crop, sharpness on luma. Samples of weight 0 stay, bit for bit.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from models.media.yuv import FROM_RGB, Picture, ReplacedPicture
from models.stitch.blends import Alpha
from models.stitch.jaw import MARGIN_PX
from models.stitch.paste import Fit, PasteMemory, Paster, rows_outside, visible_box
from models.stitch.resample import Float64, scaled, warp_part, warp_plane
from models.stitch.tone import GRID, detail_sigma
from models.types import CROP_PX, Box, Float32, UInt8

TO_CHROMA = np.array([[2, 0, 0], [0, 2, 0.5], [0, 0, 1]])  # chroma sample → luma px: see models.media.yuv
LINEAR_VARIANCE = 1 / 6  # px², mean over all positions: the blur of linear interpolation


def paste_planes(
    paster: Paster, under: Picture, face: UInt8, fit: Fit, weight: float, memory: PasteMemory | None
) -> ReplacedPicture | None:
    """The picture with `face` pasted in; None if nothing of it is visible. See `Paster.paste_into`."""
    alpha = _even_alpha(fit.alpha, under.shape)
    if alpha is None:
        return None
    height, width = alpha.weights.shape
    index, transform = fit.index, paster.avatar.transforms[fit.index].astype(np.float64)
    # 1. the face on the frame's samples, in the frame's colour and sharpness
    box = visible_box(paster.avatar.masks[index], lowered=paster.jaw is not None)
    part, matrix = _part_of(face, box, transform)
    tone, due = (memory.tone, memory.tone.due()) if memory is not None else (None, False)
    if tone is not None and paster.matches_color:
        if due:
            mask = cv2.resize(fit.mask[box[1] : box[3], box[0] : box[2]], GRID, interpolation=cv2.INTER_NEAREST)
            tone.measure_color(paster.own_crop(index), part, mask, float(paster.avatar.fps))
        part = tone.match_color(part)
    luma, blue, red = cv2.split(cv2.transform(part, FROM_RGB))
    over = warp_plane(luma.astype(np.float32), matrix, alpha.left, alpha.top, width, height)
    chroma = _chroma_on(cv2.merge([blue, red]), matrix, alpha)
    if tone is not None and paster.matches_sharpness:
        sigma = detail_sigma(math.sqrt(abs(float(np.linalg.det(transform[:, :2])))))
        if due:
            hidden = rows_outside(transform, paster.avatar.masks[index], alpha, paster.avatar.height)
            tone.measure_detail(under.luma[alpha.region], over, alpha.weights, sigma, float(paster.avatar.fps), hidden)
        over = tone.match_sharpness(over, sigma)
    # 2. the frame's own samples, with the chin stretched
    own, left, top = _own_part(paster, under, fit, alpha, weight)
    # 3. blend
    share = cv2.multiply(alpha.weights, weight / 255, dtype=cv2.CV_32F)
    small = cv2.resize(share, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    x, y = alpha.left - left, alpha.top - top
    shown = own.luma[y : y + height, x : x + width]
    mixed = cv2.blendLinear(over, shown.astype(np.float32), share, 1 - share)
    cv2.convertScaleAbs(cv2.max(mixed, 0), shown)  # rounds
    rest = 1 - small
    for plane, new in zip((own.blue, own.red), chroma, strict=True):
        region = plane[y // 2 : (y + height) // 2, x // 2 : (x + width) // 2]
        cv2.blendLinear(new, region, small, rest, region)
    return ReplacedPicture(under, own, left, top)


def _own_part(paster: Paster, under: Picture, fit: Fit, alpha: Alpha, weight: float) -> tuple[Picture, int, int]:
    """A copy of the part of the picture that changes, with its left and top. The chin is stretched by the drop."""
    height, width = alpha.weights.shape
    x1, y1, x2, y2 = alpha.left, alpha.top, alpha.left + width, alpha.top + height
    motion = None
    if fit.drop > 0 and paster.jaw is not None:
        motion = paster.jaw.motion(paster.avatar.transforms[fit.index], fit.drop * weight, under.shape)
    if motion is not None:
        high, wide = motion.shift.shape
        margin = MARGIN_PX
        x1, y1 = min(x1, max(motion.left - margin, 0)), min(y1, max(motion.top - margin, 0))
        x2 = max(x2, min(motion.left + wide + margin, under.shape[1]))
        y2 = max(y2, min(motion.top + high + margin, under.shape[0]))
    own = Picture(
        *(plane[y1 // k : y2 // k, x1 // k : x2 // k].copy() for plane, k in zip(under.planes, (1, 2, 2), strict=True))
    )
    if motion is not None:
        motion.move(own.luma, x1, y1)
        halved = motion.halved()
        for plane in (own.blue, own.red):
            halved.move(plane, x1 // 2, y1 // 2, cv2.INTER_LINEAR)
    return own, x1, y1


def _even_alpha(alpha: Alpha, size: tuple[int, ...]) -> Alpha | None:
    """The mask on a region with even edges, for a picture of even (height, width); None if it is empty."""
    height, width = alpha.weights.shape
    top, left = alpha.top // 2 * 2, alpha.left // 2 * 2
    bottom, right = min(-(-(alpha.top + height) // 2) * 2, size[0]), min(-(-(alpha.left + width) // 2) * 2, size[1])
    if not alpha.weights.size or bottom <= top or right <= left:
        return None
    weights = alpha.weights[: bottom - alpha.top, : right - alpha.left]
    above, before = alpha.top - top, alpha.left - left
    below, after = bottom - top - above - len(weights), right - left - before - weights.shape[1]
    return Alpha(top, left, cv2.copyMakeBorder(weights, above, below, before, after, cv2.BORDER_CONSTANT, value=0))


def _part_of(face: UInt8, box: Box, transform: Float64) -> tuple[UInt8, Float64]:
    """The part of `face` `(s, s, 3)` in a box of the 256 px crop, and the matrix from frame px to its px."""
    times = face.shape[0] / CROP_PX
    x1, y1, x2, y2 = (round(edge * times) for edge in box)
    matrix = scaled(transform, times)
    matrix[:, 2] -= (x1, y1)
    return np.ascontiguousarray(face[y1:y2, x1:x2]), matrix


def _chroma_on(chroma: UInt8, matrix: Float64, alpha: Alpha) -> tuple[UInt8, UInt8]:
    """Cb and Cr on the frame's chroma samples in the region, from both at the crop's resolution `(h, w, 2)`.

    A chroma sample is the mean of luma px with the weights 1 2 1 across and 1 1 down. The crop is blurred so that, with
    linear interpolation, the variance of both kernels is equal.
    """
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))  # crop px per frame px
    while scale >= 1.5:
        chroma = cv2.resize(
            chroma[: len(chroma) // 2 * 2, : chroma.shape[1] // 2 * 2],
            None,
            fx=0.5,
            fy=0.5,
            interpolation=cv2.INTER_AREA,
        )
        matrix, scale = scaled(matrix, 0.5), scale / 2
    across, down = (_spread(max(0.0, variance * scale * scale - LINEAR_VARIANCE)) for variance in (0.5, 0.25))
    chroma = cv2.sepFilter2D(chroma, -1, across, down, borderType=cv2.BORDER_REPLICATE)
    height, width = alpha.weights.shape
    place = alpha.left // 2, alpha.top // 2, width // 2, height // 2
    whole = np.vstack([matrix, [0, 0, 1]]) @ TO_CHROMA
    blue, red = cv2.split(warp_part(chroma, whole[:2], *place, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE))
    return blue, red


def _spread(variance: float) -> Float32:
    """A kernel of three taps with this variance in px²."""
    side = min(variance / 2, 1 / 3)
    return np.array([side, 1 - 2 * side, side], np.float32)
