"""How a face is cut out of each frame: along a smooth transform, or by MuseTalk's integer box.

`similarity`: sub-pixel, rotates with the head, smoothed (see models/avatar/track.py). `box`: MuseTalk's box stretched
to 256 px, as its weights expect, but upright, sub-pixel, smoothed and of constant size. `musetalk`: as MuseTalk itself
(scripts/realtime_inference.py): the box of each frame's own landmarks in whole px, resized with Lanczos-4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.flow import Motion
from models.avatar.track import Bool, CropTrack, TrackOptions, crop_transforms, musetalk_box
from models.errors import NoFaceError
from models.geometry import warp
from models.types import CROP_PX, Box, Float32, Int32, UInt8

GEOMETRIES = ("similarity", "box", "musetalk")

DetectedBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class CropGeometry:
    """Where the face lies in every frame. boxes: int32 `(n, 4)` within the frame for `musetalk`, otherwise None."""

    track: CropTrack
    boxes: Int32 | None = None

    def box(self, k: int) -> Box:
        """Return the box of frame `k`; only for geometry `musetalk`."""
        assert self.boxes is not None
        x1, y1, x2, y2 = self.boxes[k].tolist()
        return x1, y1, x2, y2

    def crop(self, frame: UInt8, k: int) -> UInt8:
        """Cut the crop of frame `k`, RGB uint8 `(256, 256, 3)`, out of `frame`."""
        return face_crop(frame, self.track.transforms[k], None if self.boxes is None else self.box(k))


def face_crop(frame: UInt8, transform: Float32, box: Box | None) -> UInt8:
    """The crop, RGB uint8 `(256, 256, 3)`, along a transform `(2, 3)`, or of a box of geometry `musetalk`."""
    if box is None:
        return warp(frame, transform)
    x1, y1, x2, y2 = box
    crop = cv2.resize(frame[y1:y2, x1:x2], (CROP_PX, CROP_PX), interpolation=cv2.INTER_LANCZOS4)
    return cast(UInt8, crop)


def crop_geometry(
    geometry: str,
    landmarks: npt.NDArray[Any],
    has_face: Bool,
    detected: Sequence[DetectedBox | None],
    fps: float,
    size: tuple[int, int],
    options: TrackOptions,
    motions: Sequence[Motion | None] = (),
    cuts: Sequence[int] = (),
) -> CropGeometry:
    """Return the crop geometry of a video.

    geometry: one of GEOMETRIES. landmarks: `(n, 68, 2)` in frame px. detected: the detector's boxes, None without a
    face. size: (height, width) of the frame. motions, cuts: see `crop_transforms`. Raises NoFaceError when no frame, or
    too few frames, show a face.
    """
    if geometry == "box":
        options = dataclasses.replace(options, shape="box")
    track = crop_transforms(landmarks, has_face, fps, options, motions, cuts, upright=geometry == "box")
    if geometry != "musetalk":
        return CropGeometry(track)
    boxes = np.empty((len(landmarks), 4), np.int32)
    for k, points in enumerate(track.landmarks):  # interpolated where there is no face
        box = musetalk_box(points, size[0], options.bbox_shift, options.extra_margin, detected[k])
        boxes[k] = _within(box, size)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1).astype(np.float32)
    return CropGeometry(dataclasses.replace(track, transforms=box_transforms(boxes), side_px=sides), boxes)


def box_transforms(boxes: Int32) -> Float32:
    """Return the transforms `(n, 2, 3)`, frame px → crop px, by which cv2.resize maps boxes `(n, 4)` to crops."""
    scale = CROP_PX / (boxes[:, 2:] - boxes[:, :2])  # (n, 2): x, y
    transforms = np.zeros((len(boxes), 2, 3), np.float32)
    transforms[:, 0, 0], transforms[:, 1, 1] = scale[:, 0], scale[:, 1]
    transforms[:, :, 2] = (0.5 - boxes[:, :2]) * scale - 0.5
    return transforms


def _within(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box inside a frame of (height, width); MuseTalk stretches it to the crop, too."""
    x1, y1, x2, y2 = max(0, box[0]), max(0, box[1]), min(size[1], box[2]), min(size[0], box[3])
    if x2 <= x1 or y2 <= y1:
        raise NoFaceError("The face is outside the frame.", "Use a video that shows the whole face.")
    return x1, y1, x2, y2
