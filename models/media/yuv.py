"""YUV pictures as a video codec stores them, and their conversion to and from RGB, in whole or in part.

BT.709 in limited range, 8 bit, 4:2:0. A chroma sample is co-sited with the left column of its 2 × 2 px and lies between
their two rows, which is H.264's default (ITU-T H.264, E.2.1, chroma_sample_loc_type 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import cv2
import numpy as np

from models.types import Box, Float32, FrameSource, UInt8

KR, KB = 0.2126, 0.0722  # luma coefficients of red and blue (ITU-R BT.709-6, 3.2)
LUMA, CHROMA = 219.0, 224.0  # limited range: luma from 16 to 16 + 219, chroma 128 ± 224 / 2
BAND_PX = 64  # rows of a whole frame that are converted at once
EDGE_PX = 2  # extra chroma samples around a part, which the interpolation needs
BETWEEN = np.array([[-1, 9, 9, -1]], np.float32) / 16  # interpolates half-way between two chroma samples (Catmull-Rom)


def _from_rgb() -> Float32:
    """`(3, 4)`: (R, G, B, 1) → (Y, Cb, Cr)."""
    weights = np.array([KR, 1 - KR - KB, KB])
    blue, red = (np.eye(3)[2] - weights) / (2 - 2 * KB), (np.eye(3)[0] - weights) / (2 - 2 * KR)
    linear = np.stack([LUMA * weights, CHROMA * blue, CHROMA * red]) / 255
    return np.hstack([linear, [[16], [128], [128]]]).astype(np.float32)


def _to_rgb() -> Float32:
    """`(3, 4)`: (Y, Cb, Cr, 1) → (R, G, B)."""
    forward = FROM_RGB.astype(np.float64)
    inverse = np.linalg.inv(forward[:, :3])
    return np.hstack([inverse, -inverse @ forward[:, 3:]]).astype(np.float32)


FROM_RGB = _from_rgb()
TO_RGB = _to_rgb()


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """The uint8 planes of a picture with even sides: luma `(h, w)`, Cb (blue) and Cr (red) `(h / 2, w / 2)`."""

    luma: UInt8
    blue: UInt8
    red: UInt8

    def __post_init__(self) -> None:
        height, width = self.luma.shape
        assert height % 2 == width % 2 == 0, self.luma.shape
        assert self.blue.shape == self.red.shape == (height // 2, width // 2), (self.luma.shape, self.blue.shape)

    @classmethod
    def empty(cls, height: int, width: int) -> Picture:
        """A picture with uninitialised samples."""
        chroma = np.empty((2, height // 2, width // 2), np.uint8)
        return cls(np.empty((height, width), np.uint8), chroma[0], chroma[1])

    @property
    def planes(self) -> tuple[UInt8, UInt8, UInt8]:
        return self.luma, self.blue, self.red

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width)."""
        return self.luma.shape

    def copy_from(self, frame: AnyFrame) -> None:
        """Overwrite this picture with `frame`, cropped to this picture's size."""
        height, width = self.shape
        if isinstance(frame, np.ndarray):
            for top in range(0, height, BAND_PX):  # bands fit into the CPU cache, and need less memory
                write_part(self, frame[top : min(top + BAND_PX, height), :width], 0, top)
            return
        source = frame if isinstance(frame, Picture) else frame.under
        for own, plane in zip(self.planes, source.planes, strict=True):
            own[...] = plane[: own.shape[0], : own.shape[1]]
        if isinstance(frame, PatchedPicture):
            rows, columns = height - frame.top, width - frame.left
            write_part(self, frame.rgb[:rows, :columns], frame.left, frame.top, frame.changed[:rows, :columns])
        if isinstance(frame, ReplacedPicture):
            for own, plane, step in zip(self.planes, frame.part.planes, (1, 2, 2), strict=True):
                region = own[frame.top // step :, frame.left // step :][: plane.shape[0], : plane.shape[1]]
                region[...] = plane[: region.shape[0], : region.shape[1]]


@dataclass(frozen=True, slots=True, eq=False)
class PatchedPicture:
    """A picture with one part replaced: RGB `(h, w, 3)` at (left, top). Position and sides are even.

    changed: where the new samples replace the old ones, see `write_part`.
    """

    under: Picture
    rgb: UInt8
    left: int
    top: int
    changed: UInt8

    @property
    def shape(self) -> tuple[int, ...]:
        return self.under.shape


@dataclass(frozen=True, slots=True, eq=False)
class ReplacedPicture:
    """A picture with one part replaced by another picture, at the even position (left, top)."""

    under: Picture
    part: Picture
    left: int
    top: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.under.shape


AnyFrame = UInt8 | Picture | PatchedPicture | ReplacedPicture  # an array is RGB `(h, w, 3)`


@runtime_checkable
class PictureSource(FrameSource, Protocol):
    """A frame source that also provides its frames as YUV pictures."""

    def picture(self, index: int) -> Picture: ...


def picture_at(frames: FrameSource, index: int) -> Picture:
    """Frame `index` as a picture: directly if the source supports it, else converted from RGB."""
    return frames.picture(index) if isinstance(frames, PictureSource) else picture_of(frames[index])


def picture_of(rgb: UInt8) -> Picture:
    """A whole RGB frame `(h, w, 3)` as a picture. The last row or column of an odd side is cropped."""
    picture = Picture.empty(rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2)
    picture.copy_from(rgb)
    return picture


def rgb_part(picture: Picture, part: Box) -> UInt8:
    """A part of a picture, with even edges, as RGB `(h, w, 3)`. A pixel has the same value whatever the part is."""
    x1, y1, x2, y2 = part
    chroma = [_upsample_chroma(plane, (x1 // 2, y1 // 2, x2 // 2, y2 // 2)) for plane in (picture.blue, picture.red)]
    planes = [np.ascontiguousarray(plane) for plane in (picture.luma[y1:y2, x1:x2], *chroma)]  # cv2.merge needs this
    return cast(UInt8, cv2.transform(cv2.merge(planes), TO_RGB))


def _upsample_chroma(plane: UInt8, part: Box) -> UInt8:
    """A part of a chroma plane at twice the height and width."""
    x1, y1, x2, y2 = part
    left, top = max(x1 - EDGE_PX, 0), max(y1 - EDGE_PX, 0)
    source = plane[top : y2 + EDGE_PX, left : x2 + EDGE_PX]
    tall = cv2.resize(source, (source.shape[1], 2 * source.shape[0]), interpolation=cv2.INTER_LINEAR)
    tall = tall[2 * (y1 - top) : 2 * (y2 - top)]
    between = cv2.filter2D(tall, -1, BETWEEN, anchor=(1, 0), borderType=cv2.BORDER_REPLICATE)
    wide = cv2.merge([tall, between]).reshape(len(tall), -1)  # interleaves the columns
    return cast(UInt8, wide[:, 2 * (x1 - left) : 2 * (x2 - left)])


def write_part(picture: Picture, rgb: UInt8, left: int, top: int, changed: UInt8 | None = None) -> None:
    """Write RGB `(h, w, 3)`, with even sides, into a picture at an even position (left, top).

    changed: `(h, w)`; where it is 0, the picture keeps its own samples, bit for bit. None: replace all samples.
    """
    height, width = rgb.shape[:2]
    luma = cv2.extractChannel(cv2.transform(rgb, FROM_RGB), 0)  # faster with all three rows than with one
    _, blue, red = cv2.split(cv2.transform(_downsample_to_chroma(rgb), FROM_RGB))
    rows, columns = slice(top // 2, (top + height) // 2), slice(left // 2, (left + width) // 2)
    shown = picture.luma[top : top + height, left : left + width]
    parts = shown, picture.blue[rows, columns], picture.red[rows, columns]
    if changed is None:
        for part, new in zip(parts, (luma, blue, red), strict=True):
            part[...] = new
        return
    changed_rows = changed[::2] | changed[1::2]
    any_of_four = changed_rows[:, ::2] | changed_rows[:, 1::2]
    for part, new, where in zip(parts, (luma, blue, red), (changed, any_of_four, any_of_four), strict=True):
        cv2.copyTo(new, where, part)


def _downsample_to_chroma(rgb: UInt8) -> UInt8:
    """RGB `(h, w, 3)` at the chroma sample positions, `(h / 2, w / 2, 3)`. Weights: 1 2 1 across, 1 1 down."""
    height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
    right = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)  # mean of the co-sited and the next column
    if width > 1:
        # mean of the previous and the co-sited column
        left = cv2.resize(rgb[:, 1:-1], (width - 1, height), interpolation=cv2.INTER_AREA)
        right[:, 1:] = cv2.addWeighted(right[:, 1:], 0.5, left, 0.5, 0)
    return cast(UInt8, right)
