"""Pictures as a video coder stores them, and their way to RGB and back, in part or whole. Knows no coder, no faces.

BT.709 in limited range, 8 bit, 4:2:0: a chroma sample lies on the left column of the 2 × 2 px that it colours, between
their rows, as H.264 has it where a stream says nothing (ITU-T H.264, E.2.1, chroma_sample_loc_type 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import cv2
import numpy as np

from models.types import Box, Float32, FrameSource, UInt8

KR, KB = 0.2126, 0.0722  # ITU-R BT.709-6, 3.2
LUMA, CHROMA = 219.0, 224.0  # levels of the limited range, from 16 and around 128
BAND_PX = 64  # rows, of a whole frame
EDGE_PX = 2  # of chroma beside a part: what interpolation looks at
BETWEEN = np.array([[-1, 9, 9, -1]], np.float32) / 16  # half-way between two chroma samples (Catmull and Rom)


def _from_rgb() -> Float32:
    """`(3, 4)`: RGB and 1 → Y, Cb, Cr."""
    weights = np.array([KR, 1 - KR - KB, KB])
    blue, red = (np.eye(3)[2] - weights) / (2 - 2 * KB), (np.eye(3)[0] - weights) / (2 - 2 * KR)
    linear = np.stack([LUMA * weights, CHROMA * blue, CHROMA * red]) / 255
    return np.hstack([linear, [[16], [128], [128]]]).astype(np.float32)


def _to_rgb() -> Float32:
    """`(3, 4)`: Y, Cb, Cr and 1 → RGB."""
    forth = FROM_RGB.astype(np.float64)
    back = np.linalg.inv(forth[:, :3])
    return np.hstack([back, -back @ forth[:, 3:]]).astype(np.float32)


FROM_RGB = _from_rgb()
TO_RGB = _to_rgb()


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Planes of one picture with even sides, uint8: luma `(h, w)`, blue and red `(h / 2, w / 2)`."""

    luma: UInt8
    blue: UInt8
    red: UInt8

    def __post_init__(self) -> None:
        height, width = self.luma.shape
        assert height % 2 == width % 2 == 0, self.luma.shape
        assert self.blue.shape == self.red.shape == (height // 2, width // 2), (self.luma.shape, self.blue.shape)

    @classmethod
    def empty(cls, height: int, width: int) -> Picture:
        """One to be filled."""
        chroma = np.empty((2, height // 2, width // 2), np.uint8)
        return cls(np.empty((height, width), np.uint8), chroma[0], chroma[1])

    @property
    def planes(self) -> tuple[UInt8, UInt8, UInt8]:
        return self.luma, self.blue, self.red

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width."""
        return self.luma.shape

    def copy_from(self, frame: AnyFrame) -> None:
        """Become that frame, without what it has beyond this picture's sides."""
        height, width = self.shape
        if isinstance(frame, np.ndarray):
            for top in range(0, height, BAND_PX):  # what lies in the processor's cache is faster, and little memory
                write_part(self, frame[top : min(top + BAND_PX, height), :width], 0, top)
            return
        source = frame.under if isinstance(frame, PatchedPicture) else frame
        for own, plane in zip(self.planes, source.planes, strict=True):
            own[...] = plane[: own.shape[0], : own.shape[1]]
        if isinstance(frame, PatchedPicture):
            rows, columns = height - frame.top, width - frame.left
            write_part(self, frame.rgb[:rows, :columns], frame.left, frame.top, frame.changed[:rows, :columns])


@dataclass(frozen=True, slots=True, eq=False)
class PatchedPicture:
    """A picture with a part of it anew: rgb `(h, w, 3)` at an even place, sides even. changed: see `write_part`."""

    under: Picture
    rgb: UInt8
    left: int
    top: int
    changed: UInt8

    @property
    def shape(self) -> tuple[int, ...]:
        return self.under.shape


AnyFrame = UInt8 | Picture | PatchedPicture  # an array is RGB `(h, w, 3)`


@runtime_checkable
class PictureSource(FrameSource, Protocol):
    """A source that has its frames as pictures, too."""

    def picture(self, index: int) -> Picture: ...


def picture_at(frames: FrameSource, index: int) -> Picture:
    """Frame `index` as a picture: as the source has it, else made from RGB."""
    return frames.picture(index) if isinstance(frames, PictureSource) else picture_of(frames[index])


def picture_of(rgb: UInt8) -> Picture:
    """A whole frame `(h, w, 3)`; an odd row or column at its end is left out."""
    picture = Picture.empty(rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2)
    picture.copy_from(rgb)
    return picture


def rgb_part(picture: Picture, part: Box) -> UInt8:
    """A part with even edges as RGB `(h, w, 3)`; a pixel is the same in whatever part."""
    x1, y1, x2, y2 = part
    chroma = [_raised(plane, (x1 // 2, y1 // 2, x2 // 2, y2 // 2)) for plane in (picture.blue, picture.red)]
    planes = [np.ascontiguousarray(plane) for plane in (picture.luma[y1:y2, x1:x2], *chroma)]  # else merge is slow
    return cast(UInt8, cv2.transform(cv2.merge(planes), TO_RGB))


def _raised(plane: UInt8, part: Box) -> UInt8:
    """A part of a chroma plane on twice as many rows and columns."""
    x1, y1, x2, y2 = part
    left, top = max(x1 - EDGE_PX, 0), max(y1 - EDGE_PX, 0)
    source = plane[top : y2 + EDGE_PX, left : x2 + EDGE_PX]
    tall = cv2.resize(source, (source.shape[1], 2 * source.shape[0]), interpolation=cv2.INTER_LINEAR)
    tall = tall[2 * (y1 - top) : 2 * (y2 - top)]
    between = cv2.filter2D(tall, -1, BETWEEN, anchor=(1, 0), borderType=cv2.BORDER_REPLICATE)
    wide = cv2.merge([tall, between]).reshape(len(tall), -1)  # column beside column
    return cast(UInt8, wide[:, 2 * (x1 - left) : 2 * (x2 - left)])


def write_part(picture: Picture, rgb: UInt8, left: int, top: int, changed: UInt8 | None = None) -> None:
    """Put RGB `(h, w, 3)` with even sides at an even place of the picture.

    changed: 0 where the picture's own samples stay, bit for bit, `(h, w)`; None: everything is new.
    """
    height, width = rgb.shape[:2]
    luma = cv2.extractChannel(cv2.transform(rgb, FROM_RGB), 0)  # three rows are faster than one
    _, blue, red = cv2.split(cv2.transform(_lowered(rgb), FROM_RGB))
    rows, columns = slice(top // 2, (top + height) // 2), slice(left // 2, (left + width) // 2)
    shown = picture.luma[top : top + height, left : left + width]
    parts = shown, picture.blue[rows, columns], picture.red[rows, columns]
    if changed is None:
        for part, new in zip(parts, (luma, blue, red), strict=True):
            part[...] = new
        return
    both = changed[::2] | changed[1::2]
    any_of_four = both[:, ::2] | both[:, 1::2]
    for part, new, where in zip(parts, (luma, blue, red), (changed, any_of_four, any_of_four), strict=True):
        cv2.copyTo(new, where, part)


def _lowered(rgb: UInt8) -> UInt8:
    """RGB `(h, w, 3)` at the places of the chroma samples, `(h / 2, w / 2, 3)`: columns weigh 1 2 1, rows alike."""
    height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
    right = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)  # of a place's own column and the next
    if width > 1:
        left = cv2.resize(rgb[:, 1:-1], (width - 1, height), interpolation=cv2.INTER_AREA)  # the one before and its own
        right[:, 1:] = cv2.addWeighted(right[:, 1:], 0.5, left, 0.5, 0)
    return cast(UInt8, right)
