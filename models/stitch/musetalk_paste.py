"""MuseTalk's own mask and paste: an integer box, a parsed region, a Gaussian edge. Knows no models, sessions or Ray.

The arithmetic of v1.5's musetalk/utils/blending.py (get_crop_box, get_image_prepare_material, get_image_blending),
which does it with Pillow; equal to it to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from models.avatar.parse import CHEEK_PX, paste_region
from models.stitch.alpha import Alpha
from models.types import Box, UInt8

EXPAND = 1.5  # side of the parsed square over the box's longer side
UPPER_SHARE = 0.5  # of the square's rows that are never pasted
BLUR_SHARE = 0.1  # the blur's kernel over the square's side; get_image, for whole files, takes 0.05


def whole(box: Iterable[Any]) -> Box:
    """Four edges of any whole-number type, an array's too, as Python's ints."""
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return x1, y1, x2, y2


def crop_box_of(box: Box, expand: float = EXPAND) -> Box:
    """The square around a box's middle, `expand` times its longer side, halves cut; may reach outside the frame."""
    x1, y1, x2, y2 = whole(box)
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    half = int(max(x2 - x1, y2 - y1) // 2 * expand)
    return x - half, y - half, x + half, y + half


def cut(frame_rgb: UInt8, box: Box) -> UInt8:
    """The part of a frame `(h, w, 3)` in a box, a copy; black outside the frame."""
    x1, y1, x2, y2 = box
    out = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    inside, here = _overlap(frame_rgb.shape[:2], box)
    out[here] = frame_rgb[inside]
    return out


def musetalk_material(
    frame_rgb: UInt8,
    box: Box,
    labels: npt.NDArray[np.int64],
    mode: str,
    cheek_width: int = CHEEK_PX,
    blur: float = BLUR_SHARE,
) -> tuple[UInt8, Box]:
    """MuseTalk's paste mask of a frame, uint8 `(s, s)`, and the square of the frame `(x1, y1, x2, y2)` it lies on.

    labels: the parser's, int64 `(512, 512)`, of `cut(frame_rgb, crop_box_of(box))`. mode, cheek_width: see
    `paste_region`. Raises ConfigError for a mode that does not exist.
    """
    assert frame_rgb.ndim == 3, frame_rgb.shape  # its content plays no part: labels stand for it
    box = whole(box)
    crop_box = crop_box_of(box)
    return region_mask(paste_region(labels, mode, cheek_width), box, crop_box, blur), crop_box


def region_mask(region: UInt8, box: Box, crop_box: Box, blur: float = BLUR_SHARE) -> UInt8:
    """The paste mask of a region `(512, 512)`: resized to the square, cut to the box and the lower half, blurred."""
    side = crop_box[2] - crop_box[0]
    resized = np.asarray(Image.fromarray(region).resize((side, side)))  # Pillow's default for grey pictures: bicubic
    mask = np.zeros((side, side), np.uint8)
    columns = slice(max(0, box[0] - crop_box[0]), max(0, box[2] - crop_box[0]))
    rows = slice(max(int(side * UPPER_SHARE), box[1] - crop_box[1]), max(0, box[3] - crop_box[1]))
    mask[rows, columns] = resized[rows, columns]
    kernel = int(blur * side // 2 * 2) + 1
    blurred: UInt8 = cv2.GaussianBlur(mask, (kernel, kernel), 0)
    return blurred


def musetalk_blend(frame_rgb: UInt8, face_rgb: UInt8, box: Box, mask: UInt8, crop_box: Box) -> UInt8:
    """A copy of a frame `(h, w, 3)` with a face pasted by whole px, weighed by `mask` over `crop_box`.

    face_rgb: RGB uint8 of the box's size; one of another size is resized linearly, as MuseTalk's scripts do before.
    What lies outside the frame is left out.
    """
    mask, box, crop_box = np.asarray(mask), whole(box), whole(crop_box)
    assert mask.shape == (crop_box[3] - crop_box[1], crop_box[2] - crop_box[0]), (mask.shape, crop_box)
    out = np.array(np.asarray(frame_rgb), np.uint8)
    paste_box(out, np.asarray(face_rgb), box, alpha_of(mask, crop_box, out.shape[:2]))
    return out


def alpha_of(mask: UInt8, crop_box: Box, frame_size: tuple[int, ...]) -> Alpha:
    """A mask over `crop_box` as part of a frame of (height, width), cut to what it touches; may be empty."""
    x, y, width, height = cv2.boundingRect(mask)  # of what is not zero
    touched = crop_box[0] + x, crop_box[1] + y, crop_box[0] + x + width, crop_box[1] + y + height
    inside, here = _overlap(frame_size, touched)
    weights = mask[y : y + height, x : x + width][here]
    return Alpha(inside[0].start, inside[1].start, np.ascontiguousarray(weights))


def soft_alpha(mask: UInt8, box: Box, frame_size: tuple[int, ...]) -> Alpha:
    """A paste mask `(256, 256)` in crop space, stretched over its box, as part of a frame of (height, width)."""
    size = box[2] - box[0], box[3] - box[1]
    return alpha_of(cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR), box, frame_size)


def paste_box(frame_rgb: UInt8, crop_rgb: UInt8, box: Box, alpha: Alpha) -> None:
    """Paste a crop `(s, s, 3)` into `frame_rgb`: resized linearly to the box, as MuseTalk does, then blended."""
    width, height = box[2] - box[0], box[3] - box[1]
    if crop_rgb.shape[:2] != (height, width):
        crop_rgb = cv2.resize(crop_rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    blend_into(frame_rgb, crop_rgb, box, alpha)


def blend_into(frame_rgb: UInt8, face_rgb: UInt8, box: Box, alpha: Alpha) -> None:
    """Paste `face_rgb`, RGB uint8 of the box's size, into `frame_rgb`.

    Weights m are Pillow's: (under · (255 − m) + over · m) / 255, rounded.
    """
    x1, y1, x2, y2 = box
    assert face_rgb.shape == (y2 - y1, x2 - x1, 3) and face_rgb.dtype == np.uint8, (face_rgb.shape, box)
    region = frame_rgb[alpha.region]
    place, part = _overlap(region.shape[:2], (x1 - alpha.left, y1 - alpha.top, x2 - alpha.left, y2 - alpha.top))
    over = region.copy()
    over[place] = face_rgb[part]
    weights = alpha.weights.astype(np.uint16)[..., None]
    total = region * (255 - weights) + over * weights + 128  # at most 65153: fits 16 bits
    region[...] = ((total >> 8) + total) >> 8  # total / 255, rounded, exactly


def _overlap(size: tuple[int, ...], box: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a box lies in a picture of (height, width), as slices of the picture, and of the box's own content."""
    x1, x2 = (min(max(edge, 0), size[1]) for edge in (box[0], box[2]))
    y1, y2 = (min(max(edge, 0), size[0]) for edge in (box[1], box[3]))
    return (
        (slice(y1, y2), slice(x1, x2)),
        (slice(y1 - box[1], y2 - box[1]), slice(x1 - box[0], x2 - box[0])),
    )
