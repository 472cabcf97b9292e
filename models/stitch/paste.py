"""Pastes face crops back into frames. Knows nothing of sessions, HTTP or Ray.

One geometry: the transform that cut the crop out of the frame puts it back, inverted, at sub-pixel precision, in one
resampling. Only the frame's pixels under the paste mask are touched.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np

from models.avatar.parse import region_mask
from models.geometry import apply, crop_box_of, invert
from models.stitch.alpha import Alpha
from models.stitch.blends import Blend, Level, find_blend, poisson
from models.stitch.jaw import JawDrop, JawLine
from models.stitch.musetalk_paste import (
    alpha_of,
    musetalk_blend,
    musetalk_material,
    paste_box,
    soft_alpha,
)
from models.stitch.resample import warp_face, warp_part
from models.stitch.tone import Tone, detail_sigma
from models.types import CROP_PX, Box, Float32, PreparedAvatar, UInt8

__all__ = ["Alpha", "PasteMemory", "Paster", "find_blend", "musetalk_blend", "musetalk_material", "paste", "warp_alpha"]

CACHE_BYTES = 64 << 20  # warped alphas of about 1000 frames with a 256 px face


def paste(frame: UInt8, face: UInt8, transform: Float32, mask: UInt8, mode: str = "feather") -> UInt8:
    """A copy of `frame` with `face` pasted back.

    frame: RGB `(h, w, 3)`. face: RGB `(s, s, 3)`, s = 256, or 512 after enhancement. transform: `(2, 3)`, frame px →
    256 px crop in pixel-centre coordinates. mask: paste weight `(256, 256)`, 255 is all face. All uint8 but the
    transform. mode: `feather`, `poisson` or `multiband`, see `models.stitch.blends`. Raises ConfigError for another.
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
    """What a paste has learnt of one utterance: colour, sharpness, jaw, level. A new one knows and needs nothing.

    scene: of the source, counted from 0: another one has another light and another lens, and is learnt anew.
    """

    tone: Tone = field(default_factory=Tone)
    jaw: JawDrop = field(default_factory=JawDrop)
    level: Level = field(default_factory=Level)
    scene: int = 0

    def enter(self, scene: int) -> None:
        """The next frame is of that scene."""
        if scene != self.scene:
            self.tone, self.jaw, self.level, self.scene = Tone(), JawDrop(), Level(), scene


class Paster:
    """Pastes faces into the frames of one avatar, whose warped masks it keeps.

    An avatar of geometry `musetalk`, which has boxes, is pasted by MuseTalk's own rule, whatever the mode. The least
    recently used masks leave when all take more than `cache_bytes`. Not thread-safe. Raises ConfigError for a
    mode that does not exist.
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
        """color_match, sharpness_match, jaw_follow: what a paste with a memory does besides."""
        self._avatar = avatar
        self._blend = find_blend(mode)
        self._again = partial(Paster, avatar, mode, cache_bytes, color_match, sharpness_match, jaw_follow)
        self._cache: OrderedDict[int, Alpha] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._reaches: dict[int, Box] = {}
        self.cached_bytes = 0
        self._color, self._sharp = color_match, sharpness_match
        line = JawLine(avatar) if jaw_follow and avatar.boxes is None else None
        self._jaw = line if line is not None and line.usable else None

    def clone(self) -> Paster:
        """Another for the same avatar that pastes alike, with caches of its own: safe beside this one."""
        return self._again()

    def affected_box(self, index: int) -> Box:
        """The part of frame `index`, within it, outside of which `paste_into` reads and writes nothing."""
        if index not in self._reaches:
            self._reaches[index] = self._reach(index)
        return self._reaches[index]

    def _reach(self, index: int) -> Box:
        alpha, avatar = self._alpha(index), self._avatar
        height, width = alpha.weights.shape
        box = alpha.left, alpha.top, alpha.left + width, alpha.top + height
        if self._jaw is None or not alpha.weights.size:
            return box
        other = self._jaw.reach(avatar.transforms[index], (avatar.height, avatar.width))
        return min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]), max(box[3], other[3])

    def paste_into(
        self, frame: UInt8, face: UInt8, index: int, weight: float = 1.0, memory: PasteMemory | None = None
    ) -> None:
        """Write `face` into `frame`, a writable copy of the avatar's frame `index`; a frame without a face stays.

        weight: from the source's own mouth (0: the frame stays, bit for bit) to the generated one (1). memory: of the
        utterance, whose frames come in order; it matches colour and sharpness and follows the jaw. Without one the
        face is pasted as it is.
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
        """The blend, with what is remembered of the utterance."""
        if memory is None or self._blend is not poisson:
            return self._blend
        return partial(poisson, level=memory.level, fps=float(self._avatar.fps))

    def _fitted(
        self, frame: UInt8, face: UInt8, index: int, weight: float, memory: PasteMemory | None
    ) -> tuple[Alpha, UInt8]:
        """The mask of a frame and the face on its region, as the memory would have them; the frame's chin follows."""
        transform, fps = self._avatar.transforms[index], float(self._avatar.fps)
        assert face.ndim == 3 and face.shape[0] == face.shape[1] and face.dtype == np.uint8, (face.shape, face.dtype)
        alpha, drop = self._alpha(index), 0.0
        if memory is None or not alpha.weights.size:
            return alpha, _face_on(face, transform, alpha)
        memory.enter(bisect.bisect_right(self._avatar.cuts, index))
        if self._jaw is not None:
            drop = memory.jaw(self._jaw.drop(frame, face, transform, index), fps)
        if self._jaw is not None and drop > 0:
            lowered = self._jaw.lowered(self._avatar.masks[index], drop)
            alpha = warp_alpha(transform, lowered, (self._avatar.height, self._avatar.width))
        over = self._toned(frame[alpha.region], _face_on(face, transform, alpha), index, alpha, memory.tone)
        if self._jaw is not None and drop > 0:
            self._jaw.draw_down(frame, transform, drop * weight)
        return alpha, over

    def _toned(self, own: UInt8, over: UInt8, index: int, alpha: Alpha, tone: Tone) -> UInt8:
        """The face `over` the frame's own region, in its colour and as sharp."""
        transform, mask = self._avatar.transforms[index], self._avatar.masks[index]
        fps, due = float(self._avatar.fps), tone.due()
        if self._color:
            if due:
                tone.see_color(own, over, alpha.weights, fps)
            over = tone.colored(over)
        if self._sharp:
            sigma = detail_sigma(math.sqrt(abs(float(np.linalg.det(transform[:, :2].astype(np.float64))))))
            if due:
                hidden = hidden_rows(transform, mask, alpha, self._avatar.height)
                tone.see_detail(own, over, alpha.weights, sigma, fps, hidden)
            over = tone.sharpened(over, sigma)
        return over

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
    kernel = cv2.INTER_LINEAR  # a sharper one would overshoot at the mask's edge
    place = int(left), int(top), int(right - left), int(bottom - top)
    weights = warp_part(mask, transform.astype(np.float64), *place, kernel, cv2.BORDER_CONSTANT)
    x, y, width, height = cv2.boundingRect(weights)
    weights = np.ascontiguousarray(weights[y : y + height, x : x + width])
    return Alpha(int(top) + y, int(left) + x, weights)


def hidden_rows(transform: Float32, mask: UInt8, alpha: Alpha, height: int) -> tuple[int, int]:
    """How many rows of a paste mask lie above a frame of that height, and below it; 0 where the frame cuts nothing."""
    if alpha.top > 0 and alpha.top + len(alpha.weights) < height:
        return 0, 0
    x, y, across, down = cv2.boundingRect(mask)
    corners = np.array([[x, y], [x + across, y], [x, y + down], [x + across, y + down]], np.float64)
    rows = apply(invert(transform), corners)[:, 1]
    return max(0, math.ceil(-rows.min())), max(0, math.ceil(rows.max()) - height)


def _face_on(face: UInt8, transform: Float32, alpha: Alpha) -> UInt8:
    """The face on the region of a mask, `(h, w, 3)`."""
    height, width = alpha.weights.shape
    if not alpha.weights.size:
        return np.zeros((0, 0, 3), np.uint8)
    return warp_face(face, transform, alpha.left, alpha.top, width, height)
