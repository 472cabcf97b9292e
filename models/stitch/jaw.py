"""Makes the paste follow a jaw that opens wider than in the source.

The drop of the generated jaw is measured by sliding the source's lower face down along the jaw line until it correlates
best with the generated one: one number per frame, in px of a 256 px crop. The mask's lower outline then moves down by
the drop, within the crop. The frame's own chin and neck are stretched down by the same amount before the paste, so that
a chin that leaves the crop continues below it and is neither cut nor doubled. If the source's jaw is as open, nothing
changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from models.geometry import apply, invert, warp
from models.types import CROP_PX, Box, Float32, PreparedAvatar, UInt8

Float64 = npt.NDArray[np.float64]

LINE = slice(4, 13)  # iBUG jaw points below the corners of the mouth
ABOVE_PX, BELOW_PX = 30, 8  # the band around the jaw line that is compared
ROW_STEP_PX, COLUMN_STEP_PX = 3, 6
DROP_STEP_PX = 2
DROPS = np.arange(-6, 25, DROP_STEP_PX)  # drops that are tried, px; a parabola interpolates between them
LEAST_SEEN = 40  # minimum number of compared samples inside the crop
LEAST_GAIN = 0.01  # minimum gain of correlation over no drop: a smaller one is noise
LEAST_DROP_PX = 0.25  # smaller drops count as none
# Larger drops are followed fully, smaller ones progressively less, because a resting jaw is sometimes measured one px
# off. Following only a part of a large drop would be visible: FaceMesh then measures a smaller mouth opening.
WHOLE_DROP_PX = 3.0
NECK_PX = 60.0  # this far below the chin the frame is unchanged; a drop of 24 px compresses the neck to a third
MOUTH_ROW = 0.62  # share of the crop's height: nothing moves above it
FIELD_PX = 4  # frame px per cell of the motion field
FIELD_CACHE_BYTES = 16 << 20  # of motion fields that are kept: 20 KB each for a face of 256 px
LEAST_SHIFT_PX = 1 / 64  # pixels with less motion stay, bit for bit
MARGIN_PX = 4
SEEN_PX = 4  # margin in crop px around the compared samples, for blur and interpolation
LOWER_FADE = 8.0  # rows over which the mask fades at the crop's lower edge
RELEASE_S = 0.08  # time constant for a closing jaw; an opening one is followed at once, so the mask never lags the chin


Field = tuple[Box, Float32, Float32, Float32, tuple[float, float]]  # see JawLine._field


@dataclass(slots=True)
class JawDrop:
    """The smoothed drop of one utterance."""

    px: float = 0.0

    def __call__(self, seen_px: float, fps: float) -> float:
        """The drop to use for the next frame, from the measured one."""
        falling = self.px * math.exp(-1 / (RELEASE_S * fps))
        self.px = max(seen_px, falling if falling > LEAST_DROP_PX else 0.0)
        share = min(self.px / WHOLE_DROP_PX, 1.0)
        return self.px * share * share * (3 - 2 * share)


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """The part of a frame at (left, top), with even position and sides, that moves down with the chin.

    shift: by how many crop px each pixel moves, `(h, w)`. step: the direction, frame px per crop px.
    """

    shift: Float32
    left: int
    top: int
    step: tuple[float, float]

    def move(self, image: UInt8, x: int, y: int, kernel: int = cv2.INTER_CUBIC) -> None:
        """Apply the motion, in place, to the part of the frame at (x, y), which contains the moving part.

        kernel: linear takes a quarter of the time, and is enough for chroma.
        """
        left, top, (height, width) = self.left - x, self.top - y, self.shift.shape
        low_x, low_y = max(left - MARGIN_PX, 0), max(top - MARGIN_PX, 0)
        source = image[low_y : top + height + MARGIN_PX, low_x : left + width + MARGIN_PX].copy()
        from_x = np.arange(left - low_x, left - low_x + width, dtype=np.float32) - np.float32(self.step[0]) * self.shift
        rows = np.arange(top - low_y, top - low_y + height, dtype=np.float32)[:, None]
        from_y = rows - np.float32(self.step[1]) * self.shift
        moved = cv2.remap(source, from_x, from_y, kernel, borderMode=cv2.BORDER_REPLICATE)
        moves = cv2.compare(self.shift, LEAST_SHIFT_PX, cv2.CMP_GT)
        cv2.copyTo(moved, moves, image[top : top + height, left : left + width])

    def halved(self) -> Motion:
        """The motion of a plane with half the height and width."""
        height, width = self.shift.shape
        small = cast(Float32, cv2.resize(self.shift, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
        return Motion(small, self.left // 2, self.top // 2, (self.step[0] / 2, self.step[1] / 2))


class JawLine:
    """The jaw line in an avatar's crops, and what the avatar's own frames show around it."""

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
        # a rolled jaw may leave the crop
        first, last = max(math.ceil(self._x[0]) + 4, 0), min(self._x[-1] - 4, CROP_PX - 1)
        columns = np.arange(first, last, COLUMN_STEP_PX)
        offsets = np.arange(-ABOVE_PX, BELOW_PX + 1, ROW_STEP_PX)
        jaw = np.interp(columns, self._x, self._y)
        self._columns = np.rint(columns).astype(int)[None]  # (1, m)
        self._rows = jaw[None] + offsets[:, None]  # (t, m)
        slid = np.rint(self._rows[None] + DROPS[:, None, None] * self.share(columns)).astype(int)  # (d, t, m)
        seen = (slid >= 0) & (slid < CROP_PX - 1) & (self._rows < CROP_PX - 1)
        self._seen = seen.reshape(len(DROPS), -1).astype(np.float32)
        self._first_seen = max(int(slid.min()) - SEEN_PX, 0)
        places = np.clip(slid, 0, CROP_PX - 1) - self._first_seen
        self._slid = (places * CROP_PX + self._columns).reshape(len(DROPS), -1)  # indices into the rows from there on
        self._own: dict[int, Float32] = {}
        self._fields: LRUCache[tuple[bytes, tuple[int, ...]], Field] = LRUCache(
            FIELD_CACHE_BYTES, lambda field: min(sum(part.nbytes for part in field[1:4]), FIELD_CACHE_BYTES)
        )
        self._chin = float(self._y.max())
        self._prepare_mask()

    def _prepare_mask(self) -> None:
        """Precompute for `lower_mask`: the share of the drop that each crop px below the mouth follows."""
        self._first_row = int(CROP_PX * MOUTH_ROW)
        first, end = max(math.floor(self._x[0]), 0), min(math.ceil(self._x[-1]) + 1, CROP_PX)  # beside it nothing moves
        self._moving = slice(first, end)
        y, x = np.mgrid[self._first_row : CROP_PX, self._moving].astype(np.float32)
        ramp = _eased(np.clip((y - self._first_row) / max(self._chin - self._first_row, 1), 0, 1))
        self._x_map, self._y_map, self._ramp = x, y, (ramp * self.share(x)).astype(np.float32)
        ends = _eased(np.clip((CROP_PX - 1 - np.arange(self._first_row, CROP_PX)) / LOWER_FADE, 0, 1))
        self._limit = np.repeat(np.rint(255 * ends).astype(np.uint8)[:, None], end - first, 1)

    def share(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The share of the chin's drop that a column of the crop follows: 1 at the chin, 0 at both ends of the line."""
        middle, half = (self._x[0] + self._x[-1]) / 2, (self._x[-1] - self._x[0]) / 2
        t = np.clip(1 - np.abs((x - middle) / half), 0, 1)
        return _eased(t * (2 - t))

    def drop(self, frame: UInt8, face: UInt8, transform: npt.NDArray[Any], index: int) -> float:
        """How much lower the jaw of `face` `(s, s, 3)` is than that of frame `index`, in crop px; may be < 0."""
        if index not in self._own:
            self.learn(index, warp(frame, transform, fine=False))
        slid = _grey(face, self._first_seen).ravel()[self._slid].astype(np.float32)  # (d, t · m)
        scores = _correlation(slid, self._own[index], self._seen)
        best, none = int(np.argmax(scores)), int(np.flatnonzero(DROPS == 0)[0])
        if scores[best] < scores[none] + LEAST_GAIN:
            return 0.0
        return float(DROPS[best]) + DROP_STEP_PX * _peak(scores, best)

    def learn(self, index: int, crop: UInt8) -> None:
        """Remember what frame `index` shows around the jaw line. crop: the frame's own, `(256, 256, 3)`."""
        rows = np.clip(np.rint(self._rows).astype(int), 0, CROP_PX - 1)
        self._own[index] = _grey(crop)[rows, self._columns].astype(np.float32).ravel()  # (t · m,)

    def affected_box(self, transform: npt.NDArray[Any], size: tuple[int, int]) -> Box:
        """The part of a frame of (height, width) that `drop` and `stretch_chin` read or write. Needs a usable line."""
        columns = self._columns.min() - SEEN_PX, self._columns.max() + SEEN_PX
        rows = self._rows.min() - SEEN_PX, min(self._rows.max(), CROP_PX) + SEEN_PX
        compared = [[x, y] for x in columns for y in rows]
        places = apply(invert(transform), np.vstack([compared, self._drawn()]))
        left, top = np.clip(np.floor(places.min(0)) - MARGIN_PX, 0, size[::-1]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(places.max(0)) + 1 + MARGIN_PX, 0, size[::-1]).astype(int).tolist()
        return left, top, right, bottom

    def _drawn(self) -> Float64:
        """The corners, in crop px, of the part that `stretch_chin` moves."""
        begin, end = CROP_PX * MOUTH_ROW, self._chin + NECK_PX
        return np.array([[self._x[0], begin], [self._x[-1], begin], [self._x[0], end], [self._x[-1], end]])

    def lower_mask(self, mask: UInt8, drop: float) -> UInt8:
        """The paste mask `(256, 256)` with its lower part moved down by `drop` crop px, clipped to the crop."""
        low = cv2.remap(mask, self._x_map, self._y_map - np.float32(drop) * self._ramp, cv2.INTER_LINEAR)
        out = mask.copy()
        below = out[self._first_row :, self._moving]
        below[...] = np.maximum(below, np.minimum(low, self._limit))
        return out

    def stretch_chin(self, frame: UInt8, transform: npt.NDArray[Any], drop: float) -> None:
        """Move the chin of `frame` down by `drop` crop px, in place. Below the chin the motion decreases to 0."""
        motion = self.motion(transform, drop, frame.shape)
        if motion is not None:
            motion.move(frame, 0, 0)

    def motion(self, transform: npt.NDArray[Any], drop: float, size: tuple[int, ...]) -> Motion | None:
        """How a frame of (height, width) moves when the chin moves down by `drop` crop px; None: it does not."""
        key = (np.asarray(transform, np.float64).tobytes(), size[:2])
        field = self._fields.get(key)
        if field is None:
            field = self._fields[key] = self._field(transform, size)
        (left, top, right, bottom), share, below, room, step = field
        if right - left < 2 or bottom - top < 2:
            return None
        # the motion is smooth, so it is computed on every fourth pixel
        low = np.float32(drop)  # keeps the field float32 whatever the type of `drop` is
        coarse = low * share * _eased(np.minimum(np.maximum(below / np.maximum(room - low, 1), 0), 1))
        shift = cv2.resize(coarse, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        x1, y1, width, height = cv2.boundingRect(cv2.compare(shift, LEAST_SHIFT_PX, cv2.CMP_GT))
        if not width:
            return None
        x1, y1, x2, y2 = x1 // 2 * 2, y1 // 2 * 2, -(-(x1 + width) // 2) * 2, -(-(y1 + height) // 2) * 2
        return Motion(cast(Float32, shift[y1:y2, x1:x2]), left + x1, top + y1, step)

    def _field(self, transform: npt.NDArray[Any], size: tuple[int, ...]) -> Field:
        """What `motion` needs and the drop does not change: the part of the frame that may move, with even edges; on
        every fourth of its pixels the share of the drop above the jaw line, and the distances of the pixel and of the
        jaw line from the end of the motion, crop px; and the direction of the motion, frame px per crop px."""
        back = invert(transform)
        places, even = apply(back, self._drawn()), (size[1] // 2 * 2, size[0] // 2 * 2)
        left, top = (np.clip(np.floor(places.min(0)), 0, even).astype(int) // 2 * 2).tolist()
        right, bottom = np.clip(np.ceil(places.max(0) / 2).astype(int) * 2 + 2, 0, even).tolist()
        across, down = (max(-(-(end - start) // FIELD_PX), 1) for start, end in ((left, right), (top, bottom)))
        x = left - 0.5 + (np.arange(across) + 0.5) * (right - left) / across
        y = (top - 0.5 + (np.arange(down) + 0.5) * (bottom - top) / down)[:, None]
        (a, b, c), (d, e, f) = np.asarray(transform, np.float64)
        column, row = a * x + b * y + c, d * x + e * y + f
        begin, end = CROP_PX * MOUTH_ROW, self._chin + NECK_PX
        jaw = np.interp(column, self._x, self._y)
        above = np.clip((row - begin) / np.maximum(jaw - begin, 1), 0, 1)
        parts = (self.share(column) * _eased(above), end - row, end - jaw)
        share, below, room = (np.asarray(part, np.float32) for part in parts)
        return (left, top, right, bottom), share, below, room, (float(back[0, 1]), float(back[1, 1]))


def _eased(t: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return cast(npt.NDArray[Any], t * t * (3 - 2 * t))


def _grey(crop: UInt8, first_row: int = 0) -> UInt8:
    """The rows from `first_row` on of a crop of any size as grey `(256 - first_row, 256)`, blurred slightly, so that
    reading whole rows is accurate enough."""
    grey = cv2.cvtColor(crop[first_row * len(crop) // CROP_PX :], cv2.COLOR_RGB2GRAY)
    if grey.shape[1] != CROP_PX:
        grey = cv2.resize(grey, (CROP_PX, CROP_PX - first_row), interpolation=cv2.INTER_AREA)
    return cast(UInt8, cv2.blur(grey, (3, 3)))


def _correlation(a: Float32, b: Float32, seen: Float32) -> Float64:
    """Pearson's correlation of each row of `(d, k)` with `(k,)` where `seen` `(d, k)` is 1, `(d,)`; −1 for too few."""
    count = np.maximum(seen.sum(1), 1.0)
    a = a * seen
    mean_a, mean_b = a.sum(1) / count, seen @ b / count
    both = a @ b / count - mean_a * mean_b
    own = (np.einsum("dk,dk->d", a, a) / count - mean_a**2) * (seen @ (b * b) / count - mean_b**2)
    return np.where(count >= LEAST_SEEN, both / np.sqrt(np.maximum(own, 1e-6)), -1.0).astype(np.float64)


def _peak(scores: Float64, best: int) -> float:
    """The offset of the peak from the best score, −½ … ½, by a parabola through it and its neighbours."""
    if not 0 < best < len(scores) - 1:
        return 0.0
    before, at, after = scores[best - 1 : best + 2]
    bend = before - 2 * at + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
