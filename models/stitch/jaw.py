"""Lets the paste follow a jaw that opens wider than the source's. Knows no blends and no colours.

How far the generated jaw has dropped is read by sliding the source's lower face down along the jaw line until it looks
like the generated one: one number a frame, in px of a 256 px crop. With it the mask's lower outline moves down, as far
as the crop reaches; and the frame's own chin and neck are drawn down alike before the paste, so that a chin that leaves
the crop goes on below it, neither cut nor doubled. Where the source's jaw is as open, nothing changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.geometry import apply, invert, warp
from models.types import CROP_PX, Box, Float32, PreparedAvatar, UInt8

Float64 = npt.NDArray[np.float64]

LINE = slice(4, 13)  # iBUG jaw points below the mouth's corners
ABOVE_PX, BELOW_PX = 30, 8  # around the jaw line: what is compared
ROW_STEP_PX, COLUMN_STEP_PX = 3, 6
DROP_STEP_PX = 2
DROPS = np.arange(-6, 25, DROP_STEP_PX)  # px that are tried; between them a parabola
LEAST_SEEN = 40  # samples that must stay within the crop
LEAST_GAIN = 0.01  # of correlation over no drop at all: less is noise
LEAST_DROP_PX = 0.25  # less is no drop
# From here on a drop is followed whole, a smaller one less and less: a resting jaw is now and then read a px off.
# Less than the whole would show: FaceMesh takes a mouth whose chin stays behind for a smaller one.
WHOLE_DROP_PX = 3.0
NECK_PX = 60.0  # below the chin the frame is at rest again: at most 24 px of drop compress it to a third
MOUTH_ROW = 0.62  # of the crop: above, nothing moves
FIELD_PX = 4  # frame px per cell on which motion is worked out
LEAST_SHIFT_PX = 1 / 64  # less is no motion: those pixels stay, bit for bit
MARGIN_PX = 4
SEEN_PX = 4  # crop px around those compared: blurred, interpolated
LOWER_FADE = 8.0  # rows over which the mask ends at the crop's lower edge
RELEASE_S = 0.08  # a jaw that closes is followed this slowly, one that opens at once: the mask must never lag a chin


@dataclass(slots=True)
class JawDrop:
    """The drop that is followed, over time; it starts from nothing with every utterance."""

    px: float = 0.0

    def __call__(self, seen_px: float, fps: float) -> float:
        """The drop to use for the next frame, from the one just seen."""
        falling = self.px * math.exp(-1 / (RELEASE_S * fps))
        self.px = max(seen_px, falling if falling > LEAST_DROP_PX else 0.0)
        share = min(self.px / WHOLE_DROP_PX, 1.0)
        return self.px * share * share * (3 - 2 * share)


class JawLine:
    """Where an avatar's jaw runs in its crops, and what its own frames show there."""

    def __init__(self, avatar: PreparedAvatar) -> None:
        inside = np.flatnonzero(avatar.has_face)
        self.usable = len(inside) > 0
        if not self.usable:
            return
        crops = apply(avatar.transforms[inside].astype(np.float64), avatar.landmarks[inside].astype(np.float64))
        line = np.median(crops[:, LINE], axis=0)  # (9, 2): x, y
        order = np.argsort(line[:, 0])
        self._x, self._y = line[order, 0], line[order, 1]
        self.usable = bool(np.ptp(self._x) > 40 and self._y.min() > CROP_PX / 3)
        if not self.usable:
            return
        first, last = max(math.ceil(self._x[0]) + 4, 0), min(self._x[-1] - 4, CROP_PX - 1)  # a rolled jaw may leave it
        columns = np.arange(first, last, COLUMN_STEP_PX)
        offsets = np.arange(-ABOVE_PX, BELOW_PX + 1, ROW_STEP_PX)
        jaw = np.interp(columns, self._x, self._y)
        self._columns = np.rint(columns).astype(int)[None]  # (1, m)
        self._rows = jaw[None] + offsets[:, None]  # (t, m)
        self._slid = np.rint(self._rows[None] + DROPS[:, None, None] * self.share(columns)).astype(int)  # (d, t, m)
        self._seen = (self._slid >= 0) & (self._slid < CROP_PX - 1)
        self._own: dict[int, Float32] = {}
        self._chin = float(self._y.max())
        self._prepare_mask()

    def _prepare_mask(self) -> None:
        """What `lowered` needs for any drop: for the rows from the mouth on, how much each crop px takes part."""
        self._first_row = int(CROP_PX * MOUTH_ROW)
        y, x = np.mgrid[self._first_row : CROP_PX, 0:CROP_PX].astype(np.float32)
        ramp = _eased(np.clip((y - self._first_row) / max(self._chin - self._first_row, 1), 0, 1))
        self._x_map, self._y_map, self._ramp = x, y, (ramp * self.share(x)).astype(np.float32)
        ends = _eased(np.clip((CROP_PX - 1 - np.arange(self._first_row, CROP_PX)) / LOWER_FADE, 0, 1))
        self._limit = np.repeat(np.rint(255 * ends).astype(np.uint8)[:, None], CROP_PX, 1)

    def share(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """How much of the chin's drop a column of the crop takes part in: 1 at the chin, 0 at both ends of the line."""
        middle, half = (self._x[0] + self._x[-1]) / 2, (self._x[-1] - self._x[0]) / 2
        t = np.clip(1 - np.abs((x - middle) / half), 0, 1)
        return _eased(t * (2 - t))

    def drop(self, frame: UInt8, face: UInt8, transform: npt.NDArray[Any], index: int) -> float:
        """How far the jaw of `face` `(s, s, 3)` hangs below that of frame `index`, in crop px; may be < 0."""
        if index not in self._own:
            crop = warp(frame, transform, fine=False)
            rows = np.clip(np.rint(self._rows).astype(int), 0, CROP_PX - 1)
            self._own[index] = _grey(crop)[rows, self._columns].astype(np.float32)
        own, grey = self._own[index], _grey(face)
        slid = grey[np.clip(self._slid, 0, CROP_PX - 1), self._columns].astype(np.float32)  # (d, t, m)
        scores = _correlation(slid, own[None], self._seen & (self._rows < CROP_PX - 1)[None])
        best, none = int(np.argmax(scores)), int(np.flatnonzero(DROPS == 0)[0])
        if scores[best] < scores[none] + LEAST_GAIN:
            return 0.0
        return float(DROPS[best]) + DROP_STEP_PX * _peak(scores, best)

    def reach(self, transform: npt.NDArray[Any], size: tuple[int, int]) -> Box:
        """What `drop` and `draw_down` look at in a frame of (height, width), within it; of a usable line."""
        columns = self._columns.min() - SEEN_PX, self._columns.max() + SEEN_PX
        rows = self._rows.min() - SEEN_PX, min(self._rows.max(), CROP_PX) + SEEN_PX
        compared = [[x, y] for x in columns for y in rows]
        places = apply(invert(transform), np.vstack([compared, self._drawn()]))
        left, top = np.clip(np.floor(places.min(0)) - MARGIN_PX, 0, size[::-1]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(places.max(0)) + 1 + MARGIN_PX, 0, size[::-1]).astype(int).tolist()
        return left, top, right, bottom

    def _drawn(self) -> Float64:
        """The corners, in the crop, of what `draw_down` moves."""
        begin, end = CROP_PX * MOUTH_ROW, self._chin + NECK_PX
        return np.array([[self._x[0], begin], [self._x[-1], begin], [self._x[0], end], [self._x[-1], end]])

    def lowered(self, mask: UInt8, drop: float) -> UInt8:
        """The paste mask `(256, 256)` with its lower part moved down by `drop` crop px, within the crop."""
        low = cv2.remap(mask, self._x_map, self._y_map - np.float32(drop) * self._ramp, cv2.INTER_LINEAR)
        out = mask.copy()
        below = out[self._first_row :]
        below[...] = np.maximum(below, np.minimum(low, self._limit))
        return out

    def draw_down(self, frame: UInt8, transform: npt.NDArray[Any], drop: float) -> None:
        """Move the chin of `frame` down by `drop` crop px, and what lies below it less and less, in place."""
        # 1. the part of the frame that moves
        back = invert(transform)
        places = apply(back, self._drawn())
        left, top = np.clip(np.floor(places.min(0)), 0, frame.shape[1::-1]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(places.max(0)) + 1, 0, frame.shape[1::-1]).astype(int).tolist()
        if right - left < 2 or bottom - top < 2:
            return
        # 2. how far each of its pixels has come down, in crop px: smooth, so it is worked out on every fourth pixel
        size = right - left, bottom - top
        coarse = -(-size[0] // FIELD_PX), -(-size[1] // FIELD_PX)
        across = left - 0.5 + (np.arange(coarse[0]) + 0.5) * size[0] / coarse[0]
        down = top - 0.5 + (np.arange(coarse[1]) + 0.5) * size[1] / coarse[1]
        shift = cv2.resize(self._shift(transform, across, down[:, None], drop), size, interpolation=cv2.INTER_LINEAR)
        # 3. drawn from a copy, with a little more around it
        low_x, low_y = max(left - MARGIN_PX, 0), max(top - MARGIN_PX, 0)
        source = frame[low_y : bottom + MARGIN_PX, low_x : right + MARGIN_PX].copy()
        from_x = np.arange(left - low_x, right - low_x, dtype=np.float32) - np.float32(back[0, 1]) * shift
        from_y = np.arange(top - low_y, bottom - low_y, dtype=np.float32)[:, None] - np.float32(back[1, 1]) * shift
        moved = cv2.remap(source, from_x, from_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        cv2.copyTo(moved, cv2.compare(shift, LEAST_SHIFT_PX, cv2.CMP_GT), frame[top:bottom, left:right])

    def _shift(self, transform: npt.NDArray[Any], x: npt.NDArray[Any], y: npt.NDArray[Any], drop: float) -> Float32:
        """How far down, in crop px, what is seen at frame px `x` (w,), `y` (h, 1) has come."""
        (a, b, c), (d, e, f) = np.asarray(transform, np.float64)
        column, row = a * x + b * y + c, d * x + e * y + f
        begin, end = CROP_PX * MOUTH_ROW, self._chin + NECK_PX
        jaw = np.interp(column, self._x, self._y)
        above = np.clip((row - begin) / np.maximum(jaw - begin, 1), 0, 1)
        below = np.clip((end - row) / np.maximum(end - jaw - drop, 1), 0, 1)
        return cast(Float32, (drop * self.share(column) * _eased(above) * _eased(below)).astype(np.float32))


def _eased(t: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return cast(npt.NDArray[Any], t * t * (3 - 2 * t))


def _grey(crop: UInt8) -> UInt8:
    """A crop of any size → `(256, 256)`, blurred a little, so that whole rows are near enough."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    if grey.shape[0] != CROP_PX:
        grey = cv2.resize(grey, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA)
    return cast(UInt8, cv2.blur(grey, (3, 3)))


def _correlation(a: Float32, b: Float32, seen: npt.NDArray[np.bool_]) -> Float64:
    """Pearson's, of each of `(d, t, m)` with `(1, t, m)` where both are seen, `(d,)`; −1 where too little is."""
    count = np.maximum(seen.sum((1, 2)), 1)
    a, b = a * seen, b * seen
    mean_a, mean_b = a.sum((1, 2)) / count, b.sum((1, 2)) / count
    both = (a * b).sum((1, 2)) / count - mean_a * mean_b
    own = ((a * a).sum((1, 2)) / count - mean_a**2) * ((b * b).sum((1, 2)) / count - mean_b**2)
    return np.where(count >= LEAST_SEEN, both / np.sqrt(np.maximum(own, 1e-6)), -1.0).astype(np.float64)


def _peak(scores: Float64, best: int) -> float:
    """Where between its neighbours the best score lies: a parabola through the three, −½ … ½."""
    if not 0 < best < len(scores) - 1:
        return 0.0
    before, at, after = scores[best - 1 : best + 2]
    bend = before - 2 * at + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
