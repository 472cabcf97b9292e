"""MuseTalk's own mask and paste: an integer box, a parsed region, a Gaussian edge.

Bit-exact with v1.5's musetalk/utils/blending.py (get_crop_box, get_image_prepare_material, get_image_blending), which
uses Pillow.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.parse import BLUR_SHARE, CHEEK_PX, paste_region, region_mask
from models.geometry import crop_box_of, int_box, overlap
from models.stitch.blends import Alpha
from models.types import Box, UInt8


def musetalk_material(
    frame_rgb: UInt8,
    box: Box,
    labels: npt.NDArray[np.int64],
    mode: str,
    cheek_width: int = CHEEK_PX,
    blur: float = BLUR_SHARE,
) -> tuple[UInt8, Box]:
    """MuseTalk's paste mask of a frame, uint8 `(s, s)`, and the square `(x1, y1, x2, y2)` of the frame that it covers.

    labels: the parser's output, int64 `(512, 512)`, for `crop_padded(frame_rgb, crop_box_of(box))`. mode, cheek_width:
    see `paste_region`. Raises ConfigError for an unknown mode.
    """
    assert frame_rgb.ndim == 3, frame_rgb.shape  # the content is not used: the labels describe it
    box = int_box(box)
    crop_box = crop_box_of(box)
    return region_mask(paste_region(labels, mode, cheek_width), box, crop_box, blur), crop_box


def musetalk_blend(frame_rgb: UInt8, face_rgb: UInt8, box: Box, mask: UInt8, crop_box: Box) -> UInt8:
    """A copy of a frame `(h, w, 3)` with a face pasted at whole pixels, weighted by `mask` over `crop_box`.

    face_rgb: RGB uint8 of the box's size. Another size is resized with linear interpolation, as in MuseTalk's scripts.
    Parts outside the frame are cropped.
    """
    mask, box, crop_box = np.asarray(mask), int_box(box), int_box(crop_box)
    assert mask.shape == (crop_box[3] - crop_box[1], crop_box[2] - crop_box[0]), (mask.shape, crop_box)
    out = np.array(np.asarray(frame_rgb), np.uint8)
    paste_box(out, np.asarray(face_rgb), box, alpha_of(mask, crop_box, out.shape[:2]))
    return out


def alpha_of(mask: UInt8, crop_box: Box, frame_size: tuple[int, ...]) -> Alpha:
    """A mask over `crop_box` as part of a frame of (height, width), cropped to its non-zero part; may be empty."""
    x, y, width, height = cv2.boundingRect(mask)  # of the non-zero part
    touched = crop_box[0] + x, crop_box[1] + y, crop_box[0] + x + width, crop_box[1] + y + height
    inside, here = overlap(frame_size, touched)
    weights = mask[y : y + height, x : x + width][here]
    return Alpha(inside[0].start, inside[1].start, np.ascontiguousarray(weights))


def soft_alpha(mask: UInt8, box: Box, frame_size: tuple[int, ...]) -> Alpha:
    """A paste mask `(256, 256)` in crop space, resized to its box, as part of a frame of (height, width)."""
    size = box[2] - box[0], box[3] - box[1]
    return alpha_of(cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR), box, frame_size)


def paste_box(frame_rgb: UInt8, crop_rgb: UInt8, box: Box, alpha: Alpha) -> None:
    """Paste a crop `(s, s, 3)` into `frame_rgb`: linear resize to the box, as in MuseTalk, then blend."""
    width, height = box[2] - box[0], box[3] - box[1]
    if crop_rgb.shape[:2] != (height, width):
        crop_rgb = cv2.resize(crop_rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    blend_into(frame_rgb, crop_rgb, box, alpha)


def blend_into(frame_rgb: UInt8, face_rgb: UInt8, box: Box, alpha: Alpha) -> None:
    """Blend `face_rgb`, RGB uint8 of the box's size, into `frame_rgb`.

    The rounding is Pillow's: (under · (255 − m) + over · m) / 255 for weight m, rounded.
    """
    x1, y1, x2, y2 = box
    assert face_rgb.shape == (y2 - y1, x2 - x1, 3) and face_rgb.dtype == np.uint8, (face_rgb.shape, box)
    region = frame_rgb[alpha.region]
    place, part = overlap(region.shape[:2], (x1 - alpha.left, y1 - alpha.top, x2 - alpha.left, y2 - alpha.top))
    over = region.copy()
    over[place] = face_rgb[part]
    weights = alpha.weights.astype(np.uint16)[..., None]
    total = region * (255 - weights) + over * weights + 128  # at most 65153: fits into 16 bits
    region[...] = ((total >> 8) + total) >> 8  # total / 255, rounded, exactly
