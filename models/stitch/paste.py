"""Pastes face crops back into frames. Knows nothing of sessions, HTTP or Ray.

One geometry: the transform that cut the crop out of the frame puts it back, inverted, at sub-pixel precision, in one
resampling. Only the frame's pixels under the paste mask are touched.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from models.errors import ConfigError
from models.stitch.alpha import Alpha
from models.stitch.musetalk_paste import (
    alpha_of,
    crop_box_of,
    musetalk_blend,
    musetalk_material,
    paste_box,
    region_mask,
    soft_alpha,
)
from models.types import CROP_PX, Float32, PreparedAvatar, UInt8

__all__ = ["Alpha", "Paster", "find_blend", "musetalk_blend", "musetalk_material", "paste", "warp_alpha"]

MINIFY_ABOVE = 1.1  # crop px per frame px from which the crop is smoothed before it is warped, against aliasing
MINIFY_BLUR = (
    0.4  # sigma in crop px, times √(scale² − 1): damps noise at scale 2 as area averaging does, keeps more detail
)
CACHE_BYTES = 64 << 20  # warped alphas of about 1000 frames with a 256 px face


Blend = Callable[[UInt8, UInt8, UInt8], UInt8]


def paste(frame: UInt8, face: UInt8, transform: Float32, mask: UInt8, mode: str = "feather") -> UInt8:
    """A copy of `frame` with `face` pasted back.

    frame: RGB `(h, w, 3)`. face: RGB `(s, s, 3)`, s = 256, or 512 after enhancement. transform: `(2, 3)`, frame px →
    256 px crop in pixel-centre coordinates. mask: paste weight `(256, 256)`, 255 is all face. All uint8 but the
    transform. mode: `feather` weighs by the mask as it is. Raises ConfigError for a mode that does not exist.
    """
    blend = find_blend(mode)
    out = np.array(np.asarray(frame), order="C")
    face, transform, mask = np.asarray(face), np.asarray(transform), np.asarray(mask)
    _paste_into(out, face, transform, warp_alpha(transform, mask, (out.shape[0], out.shape[1])), blend)
    return out


class Paster:
    """Pastes faces into the frames of one avatar, whose warped masks it keeps.

    An avatar of geometry `musetalk`, which has boxes, is pasted by MuseTalk's own rule, whatever the mode. The least
    recently used masks leave when all take more than `cache_bytes`. Not thread-safe. Raises ConfigError for a
    mode that does not exist.
    """

    def __init__(self, avatar: PreparedAvatar, mode: str = "feather", cache_bytes: int = CACHE_BYTES) -> None:
        self._avatar = avatar
        self._blend = find_blend(mode)
        self._cache: OrderedDict[int, Alpha] = OrderedDict()
        self._cache_bytes = cache_bytes
        self.cached_bytes = 0

    def paste_into(self, frame: UInt8, face: UInt8, index: int, weight: float = 1.0) -> None:
        """Write `face` into `frame`, a writable copy of the avatar's frame `index`; a frame without a face stays.

        weight: from the source's own mouth (0: the frame stays, bit for bit) to the generated one (1).
        """
        assert 0 <= weight <= 1, weight
        avatar = self._avatar
        if not avatar.has_face[index] or weight == 0:
            return
        alpha = self._alpha(index)
        own = frame[alpha.region].copy() if weight < 1 else None
        if avatar.boxes is not None:
            paste_box(frame, face, avatar.box(index), alpha)
        else:
            _paste_into(frame, face, avatar.transforms[index], alpha, self._blend)
        if own is not None and own.size:
            frame[alpha.region] = cv2.addWeighted(frame[alpha.region], weight, own, 1 - weight, 0)

    def _alpha(self, index: int) -> Alpha:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        alpha = self._frame_alpha(index)
        self._cache[index] = alpha
        self.cached_bytes += alpha.weights.nbytes
        while self.cached_bytes > self._cache_bytes and len(self._cache) > 1:
            self.cached_bytes -= self._cache.popitem(last=False)[1].weights.nbytes
        return alpha

    def _frame_alpha(self, index: int) -> Alpha:
        avatar = self._avatar
        size = (avatar.height, avatar.width)
        if avatar.boxes is None:
            return warp_alpha(avatar.transforms[index], avatar.masks[index], size)
        box = avatar.box(index)
        if avatar.regions is None:
            return soft_alpha(avatar.masks[index], box, size)
        square = crop_box_of(box)
        return alpha_of(region_mask(avatar.regions[index], box, square), square, size)


def warp_alpha(transform: Float32, mask: UInt8, frame_size: tuple[int, int]) -> Alpha:
    """The paste mask `(256, 256)` warped into a frame of (height, width), cut to what it touches; may be empty."""
    assert mask.shape == (CROP_PX, CROP_PX) and mask.dtype == np.uint8, (mask.shape, mask.dtype)
    # 1. the part of the frame that the crop covers, a pixel more for interpolation, clipped to the frame
    corners = np.array([[-1, -1, 1], [CROP_PX, -1, 1], [-1, CROP_PX, 1], [CROP_PX, CROP_PX, 1]], np.float64)
    places = corners @ cv2.invertAffineTransform(transform.astype(np.float64)).T  # (4, 2): x, y
    left, top = np.clip(np.floor(places.min(0)), 0, frame_size[::-1]).astype(int)
    right, bottom = np.clip(np.ceil(places.max(0)) + 1, 0, frame_size[::-1]).astype(int)
    if right <= left or bottom <= top:
        return Alpha(0, 0, np.zeros((0, 0), np.uint8))
    # 2. the mask there, cut to where it is not zero
    weights = _warp(mask, transform.astype(np.float64), left, top, right - left, bottom - top, cv2.BORDER_CONSTANT)
    x, y, width, height = cv2.boundingRect(weights)
    weights = np.ascontiguousarray(weights[y : y + height, x : x + width])
    return Alpha(int(top) + y, int(left) + x, weights)


def find_blend(mode: str) -> Blend:
    """The blend behind a mode's name. Raises ConfigError, which names the modes."""
    if mode not in BLENDS:
        raise ConfigError(f"There is no paste mode {mode!r}.", f"Use one of {', '.join(sorted(BLENDS))}.")
    return BLENDS[mode]


def _paste_into(frame: UInt8, face: UInt8, transform: Float32, alpha: Alpha, blend: Blend) -> None:
    assert face.ndim == 3 and face.shape[0] == face.shape[1] and face.dtype == np.uint8, (face.shape, face.dtype)
    height, width = alpha.weights.shape
    if not alpha.weights.size:
        return
    matrix = _scaled(transform.astype(np.float64), face.shape[0] / CROP_PX)
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))  # face px per frame px
    if scale > MINIFY_ABOVE:
        face = cv2.GaussianBlur(face, (0, 0), MINIFY_BLUR * float(np.sqrt(scale**2 - 1)))
    warped = _warp(face, matrix, alpha.left, alpha.top, width, height, cv2.BORDER_REPLICATE)
    region = frame[alpha.region]
    region[...] = blend(region, warped, alpha.weights)


def _warp(
    image: UInt8, matrix: npt.NDArray[np.float64], left: int, top: int, width: int, height: int, border: int
) -> UInt8:
    """The part of the frame at (left, top) as `matrix` (frame px → image px) finds it in `image`: linear for a mask."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (left, top)
    kernel = cv2.INTER_CUBIC if image.ndim == 3 else cv2.INTER_LINEAR  # cubic would overshoot at a mask's edge
    flags = kernel | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, shifted, (int(width), int(height)), flags=flags, borderMode=border)  # type: ignore[no-any-return]


def _scaled(matrix: npt.NDArray[np.float64], factor: float) -> npt.NDArray[np.float64]:
    """`matrix` onto a crop `factor` times as large: pixel centres map as (x + 0.5) · factor − 0.5."""
    scaled = matrix * factor
    scaled[:, 2] += (factor - 1) / 2
    return scaled


def _feather(under: UInt8, over: UInt8, weights: UInt8) -> UInt8:
    """`over` weighed by `weights` / 255, `under` by the rest; within half a level of exact."""
    share = cv2.multiply(weights, 1 / 255, dtype=cv2.CV_32F)
    return cv2.blendLinear(over, under, share, 1 - share)  # type: ignore[no-any-return]


BLENDS: dict[str, Blend] = {"feather": _feather}
