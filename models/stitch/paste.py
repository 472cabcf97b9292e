"""Pastes face crops into frames.

The transform that cut the crop out of the frame also puts it back: inverted, at sub-pixel precision, in one resampling.
Only pixels under the paste mask change.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass, field
from functools import partial

import cachetools
import cv2
import numpy as np

from models.avatar.parse import region_mask
from models.geometry import apply, crop_box_of, invert, warp
from models.stitch.blends import Alpha, Blend, Level, feather, find_blend, poisson
from models.stitch.jaw import JawDrop, JawLine
from models.stitch.musetalk_paste import (
    alpha_of,
    musetalk_blend,
    musetalk_material,
    paste_box,
    soft_alpha,
)
from models.stitch.resample import warp_face, warp_part
from models.stitch.tone import GRID, Tone, detail_sigma
from models.types import CROP_PX, Box, Float32, PreparedAvatar, UInt8

__all__ = ["Alpha", "PasteMemory", "Paster", "find_blend", "musetalk_blend", "musetalk_material", "paste", "warp_alpha"]

CROP_MARGIN_PX = 8  # around the mask, in px of a 256 px crop: for the kernels that resample it
CACHE_BYTES = 64 << 20  # warped masks of about 1000 frames with a face of 256 px


def paste(frame: UInt8, face: UInt8, transform: Float32, mask: UInt8, mode: str = "feather") -> UInt8:
    """A copy of `frame` with `face` pasted in.

    frame: RGB uint8 `(h, w, 3)`. face: RGB uint8 `(s, s, 3)`, s = 256, or 512 after enhancement. transform: `(2, 3)`,
    frame px → 256 px crop, in pixel-centre coordinates. mask: paste weights, uint8 `(256, 256)`, 255 is all face.
    mode: `feather`, `poisson` or `multiband`, see `models.stitch.blends`. Raises ConfigError for another mode.
    """
    blend = find_blend(mode)
    out = np.array(np.asarray(frame), order="C")
    face, transform, mask = np.asarray(face), np.asarray(transform), np.asarray(mask)
    alpha = warp_alpha(transform, mask, (out.shape[0], out.shape[1]))
    if alpha.weights.size:
        region = out[alpha.region]
        region[...] = blend(region, _face_on(face, transform, alpha), alpha.weights)
    return out


@dataclass(slots=True)
class PasteMemory:
    """What pasting has measured in one utterance: colour, sharpness, jaw, level. Starts empty.

    scene: index of the source's scene. A new scene has other light and another lens, so the measurements start again.
    """

    tone: Tone = field(default_factory=Tone)
    jaw: JawDrop = field(default_factory=JawDrop)
    level: Level = field(default_factory=Level)
    scene: int = 0

    def enter(self, scene: int) -> None:
        """Announce the scene of the next frame."""
        if scene != self.scene:
            self.tone, self.jaw, self.level, self.scene = Tone(), JawDrop(), Level(), scene


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How a face fits into frame `index`: the paste mask in the frame and in the crop, lowered by `drop` crop px."""

    index: int
    alpha: Alpha
    mask: UInt8
    drop: float


class Paster:
    """Pastes faces into the frames of one avatar and caches the warped masks.

    An avatar with geometry `musetalk` has boxes and is pasted by MuseTalk's own rule, whatever the mode. The mask cache
    is an LRU cache limited to `cache_bytes`. Not thread-safe. Raises ConfigError for an unknown mode.
    """

    def __init__(
        self,
        avatar: PreparedAvatar,
        mode: str = "feather",
        cache_bytes: int = CACHE_BYTES,
        color_match: bool = True,
        sharpness_match: bool = True,
        jaw_follow: bool = True,
    ) -> None:
        """color_match, sharpness_match, jaw_follow: corrections that are applied if `paste_into` gets a memory."""
        self.avatar = self._avatar = avatar
        self._blend = find_blend(mode)
        self._clone = partial(Paster, avatar, mode, cache_bytes, color_match, sharpness_match, jaw_follow)
        limit = max(cache_bytes, 1)
        # a mask larger than the limit is kept alone
        self._alphas: cachetools.LRUCache[int, Alpha] = cachetools.LRUCache(
            limit, getsizeof=lambda alpha: min(alpha.weights.nbytes, limit)
        )
        self._boxes: dict[int, Box] = {}
        self.matches_color, self.matches_sharpness = color_match, sharpness_match
        line = JawLine(avatar) if jaw_follow and avatar.boxes is None else None
        self.jaw = line if line is not None and line.usable else None
        self._own_crops: dict[int, UInt8] = {}  # the frame's own pixels under the mask, `GRID`

    def clone(self) -> Paster:
        """Another paster with the same settings and its own cache, for use in another thread."""
        return self._clone()

    def affected_box(self, index: int) -> Box:
        """The part of frame `index` that `paste_into` may read or write, clipped to the frame."""
        if index not in self._boxes:
            self._boxes[index] = self._affected_box(index)
        return self._boxes[index]

    def _affected_box(self, index: int) -> Box:
        alpha, avatar = self._alpha(index), self._avatar
        height, width = alpha.weights.shape
        box = alpha.left, alpha.top, alpha.left + width, alpha.top + height
        if self.jaw is None or not alpha.weights.size:
            return box
        jaw = self.jaw.affected_box(avatar.transforms[index], (avatar.height, avatar.width))
        return min(box[0], jaw[0]), min(box[1], jaw[1]), max(box[2], jaw[2]), max(box[3], jaw[3])

    def paste_into(
        self, frame: UInt8, face: UInt8, index: int, weight: float = 1.0, memory: PasteMemory | None = None
    ) -> None:
        """Write `face` into `frame`, a writable copy of the avatar's frame `index`. No change if it has no face.

        weight: 0 keeps the source's own mouth (the frame is unchanged, bit for bit), 1 shows the generated one.
        memory: measurements of the utterance, whose frames must come in order; used to match colour and sharpness and
        to follow the jaw. Without it, the face is pasted unchanged.
        """
        assert 0 <= weight <= 1, weight
        avatar = self._avatar
        if not avatar.has_face[index] or weight == 0:
            return
        if avatar.boxes is not None:
            alpha = self._alpha(index)
            own = frame[alpha.region].copy()
            paste_box(frame, face, avatar.box(index), alpha)
        else:
            alpha, over = self._fitted(frame, face, index, weight, memory)
            if not alpha.weights.size:
                return
            own = frame[alpha.region].copy() if weight < 1 else frame[alpha.region]
            frame[alpha.region] = self._blend_of(memory)(own, over, alpha.weights)
        if weight < 1 and own.size:
            frame[alpha.region] = cv2.addWeighted(frame[alpha.region], weight, own, 1 - weight, 0)

    def _blend_of(self, memory: PasteMemory | None) -> Blend:
        """The blend function, with the state of the utterance if it has one."""
        if memory is None or self._blend is not poisson:
            return self._blend
        return partial(poisson, level=memory.level, fps=float(self._avatar.fps))

    @property
    def planar(self) -> bool:
        """Whether `models.stitch.planar` pastes the same, in less time."""
        return self._blend is feather and self._avatar.boxes is None

    def knows(self, index: int) -> bool:
        """Whether `fit` and `own_crop` need no frame any more."""
        return index in self._own_crops

    def learn(self, frame: UInt8, index: int) -> None:
        """Remember what is needed of frame `index`. Read is only `affected_box`."""
        crop = warp(frame, self._avatar.transforms[index], fine=False)
        box = visible_box(self._avatar.masks[index], lowered=self.jaw is not None)
        self._own_crops[index] = cv2.resize(crop[box[1] : box[3], box[0] : box[2]], GRID, interpolation=cv2.INTER_AREA)
        if self.jaw is not None:
            self.jaw.learn(index, crop)

    def own_crop(self, index: int) -> UInt8:
        """What frame `index` shows in the `visible_box` of its mask, reduced to `GRID`."""
        return self._own_crops[index]

    def fit(self, frame: UInt8, face: UInt8, index: int, memory: PasteMemory | None) -> Fit:
        """The mask of a frame, moved down where the jaw of `face` drops. Reads `frame` only if it does not know it."""
        assert face.ndim == 3 and face.shape[0] == face.shape[1] and face.dtype == np.uint8, (face.shape, face.dtype)
        transform, mask, alpha = self._avatar.transforms[index], self._avatar.masks[index], self._alpha(index)
        if memory is None or not alpha.weights.size:
            return Fit(index, alpha, mask, 0.0)
        memory.enter(bisect.bisect_right(self._avatar.cuts, index))
        if self.jaw is None:
            return Fit(index, alpha, mask, 0.0)
        drop = memory.jaw(self.jaw.drop(frame, face, transform, index), float(self._avatar.fps))
        if drop > 0:
            mask = self.jaw.lower_mask(mask, drop)
            alpha = warp_alpha(transform, mask, (self._avatar.height, self._avatar.width))
        return Fit(index, alpha, mask, drop)

    def _fitted(
        self, frame: UInt8, face: UInt8, index: int, weight: float, memory: PasteMemory | None
    ) -> tuple[Alpha, UInt8]:
        """The mask of a frame and the corrected face on its region. Also moves the chin of `frame`."""
        transform, fit = self._avatar.transforms[index], self.fit(frame, face, index, memory)
        over = _face_on(face, transform, fit.alpha)
        if memory is not None and fit.alpha.weights.size:
            over = self._toned(frame[fit.alpha.region], over, index, fit.alpha, memory.tone)
        if self.jaw is not None and fit.drop > 0:
            self.jaw.stretch_chin(frame, transform, fit.drop * weight)
        return fit.alpha, over

    def _toned(self, own: UInt8, over: UInt8, index: int, alpha: Alpha, tone: Tone) -> UInt8:
        """The face `over` with the colour and sharpness of the frame's own region."""
        transform, mask = self._avatar.transforms[index], self._avatar.masks[index]
        fps, due = float(self._avatar.fps), tone.due()
        if self.matches_color:
            if due:
                tone.measure_color(own, over, alpha.weights, fps)
            over = tone.match_color(over)
        if self.matches_sharpness:
            sigma = detail_sigma(math.sqrt(abs(float(np.linalg.det(transform[:, :2].astype(np.float64))))))
            if due:
                hidden = rows_outside(transform, mask, alpha, self._avatar.height)
                tone.measure_detail(own, over, alpha.weights, sigma, fps, hidden)
            over = tone.match_sharpness(over, sigma)
        return over

    def _alpha(self, index: int) -> Alpha:
        alpha: Alpha | None = self._alphas.get(index)
        if alpha is None:
            alpha = self._alphas[index] = self._frame_alpha(index)
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
    """The paste mask `(256, 256)` warped into a frame of (height, width), cut to its non-zero part; may be empty."""
    assert mask.shape == (CROP_PX, CROP_PX) and mask.dtype == np.uint8, (mask.shape, mask.dtype)
    # 1. the part of the frame under the mask, with one more pixel for interpolation, clipped to the frame
    column, row, across, down = cv2.boundingRect(mask)
    edges = itertools.product((column - 1, column + across), (row - 1, row + down), (1,))
    places = np.array([*edges], np.float64) @ cv2.invertAffineTransform(transform.astype(np.float64)).T  # (4, 2): x, y
    left, top = np.clip(np.floor(places.min(0)), 0, frame_size[::-1]).astype(int)
    right, bottom = np.clip(np.ceil(places.max(0)) + 1, 0, frame_size[::-1]).astype(int)
    if not across or right <= left or bottom <= top:
        return Alpha(0, 0, np.zeros((0, 0), np.uint8))
    # 2. the warped mask, cropped to its non-zero part
    kernel = cv2.INTER_LINEAR  # a sharper kernel would overshoot at the mask's edge
    place = int(left), int(top), int(right - left), int(bottom - top)
    weights = warp_part(mask, transform.astype(np.float64), *place, kernel, cv2.BORDER_CONSTANT)
    x, y, width, height = cv2.boundingRect(weights)
    weights = np.ascontiguousarray(weights[y : y + height, x : x + width])
    return Alpha(int(top) + y, int(left) + x, weights)


def visible_box(mask: UInt8, lowered: bool) -> Box:
    """The part of a 256 px crop that a paste may read, with even edges. lowered: the mask may also move down."""
    x, y, width, height = cv2.boundingRect(mask)
    left, top = (max(edge - CROP_MARGIN_PX, 0) // 2 * 2 for edge in (x, y))
    right, bottom = (-(-min(edge + CROP_MARGIN_PX, CROP_PX) // 2) * 2 for edge in (x + width, y + height))
    return left, top, right, CROP_PX if lowered else bottom


def rows_outside(transform: Float32, mask: UInt8, alpha: Alpha, height: int) -> tuple[int, int]:
    """The number of mask rows above and below a frame of `height` rows; (0, 0) if the mask lies inside the frame."""
    if alpha.top > 0 and alpha.top + len(alpha.weights) < height:
        return 0, 0
    x, y, across, down = cv2.boundingRect(mask)
    corners = np.array([[x, y], [x + across, y], [x, y + down], [x + across, y + down]], np.float64)
    rows = apply(invert(transform), corners)[:, 1]
    return max(0, math.ceil(-rows.min())), max(0, math.ceil(rows.max()) - height)


def _face_on(face: UInt8, transform: Float32, alpha: Alpha) -> UInt8:
    """The face resampled on the region of a mask, `(h, w, 3)`."""
    height, width = alpha.weights.shape
    if not alpha.weights.size:
        return np.zeros((0, 0, 3), np.uint8)
    return warp_face(face, transform, alpha.left, alpha.top, width, height)
