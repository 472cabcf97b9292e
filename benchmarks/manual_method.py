"""The face handling of the MuseTalk manual, as it describes it. Only for comparison with WarmTalk's.

Preparation (force_prep.py) detects a box of whole pixels in each frame independently and encodes the face in it. The
server (warm_api.py) places the generated face by another box: found in the first frame and tracked by optical flow of
features (Lucas and Kanade, with medians: MedianFlow, Kalal 2010). Its size is fixed after 50 frames, and it is rounded
to whole pixels. The mask has a hard edge along the frame's own landmarks. (The `blend_mode` feather softens that edge,
but its position still jumps.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.track import musetalk_box
from models.types import CROP_PX, Box, Float32, UInt8

Float64 = npt.NDArray[np.float64]

GRID = 12  # features per side, spread over the box
WARMUP_FRAMES = 50  # scale_lock: the size is the median of this many frames, then fixed
WINDOW_PX = 15  # of the Lucas-Kanade tracker
LOWER_FACE = (*range(2, 15), 29)  # iBUG: the jaw from cheek to cheek, and the middle of the nose


def prepared_box(landmarks: Float32, frame_size: tuple[int, int]) -> Box:
    """The box in which preparation cuts out a frame's face, from the frame's own landmarks."""
    x1, y1, x2, y2 = musetalk_box(landmarks, frame_size[0])
    return max(0, x1), y1, min(frame_size[1], x2), y2


def followed_boxes(frames: Iterable[UInt8], first_landmarks: Float32) -> Iterator[Box]:
    """The box of each frame, in whole px: MuseTalk's in the first one, then moved and scaled by tracked features."""
    before: UInt8 | None = None
    place = np.zeros(4)  # x1, y1, x2, y2
    sizes: list[Float64] = []
    for frame in frames:
        grey = cast(UInt8, cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        if before is None:
            place = np.array(musetalk_box(first_landmarks, frame.shape[0]), np.float64)
        else:
            place = _median_flow(before, grey, place)
        before = grey
        middle, size = (place[:2] + place[2:]) / 2, place[2:] - place[:2]
        sizes = [*sizes, size][:WARMUP_FRAMES]
        locked = np.median(sizes, axis=0)
        x1, y1, x2, y2 = np.rint(np.concatenate([middle - locked / 2, middle + locked / 2])).astype(int).tolist()
        yield max(0, x1), max(0, y1), min(frame.shape[1], x2), min(frame.shape[0], y2)


def _median_flow(before: UInt8, after: UInt8, place: Float64) -> Float64:
    """The box, moved by the median shift of its features and scaled by the median change of their distances."""
    across, down = (np.linspace(place[k] + 4, place[k + 2] - 4, GRID) for k in (0, 1))
    points = np.stack(np.meshgrid(across, down), -1).reshape(-1, 1, 2).astype(np.float32)
    window: dict[str, Any] = {"winSize": (WINDOW_PX, WINDOW_PX), "maxLevel": 3}
    there, seen, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **window)
    back, _, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **window)
    error = np.linalg.norm(back - points, axis=-1)[:, 0]
    kept = (seen[:, 0] > 0) & (error <= np.median(error))
    if kept.sum() < 4:
        return place
    old, new = points[kept, 0].astype(np.float64), there[kept, 0].astype(np.float64)
    first, second = np.triu_indices(len(old), 1)
    distance = np.linalg.norm(old[first] - old[second], axis=1)
    scale = float(np.median(np.linalg.norm(new[first] - new[second], axis=1)[distance > 1] / distance[distance > 1]))
    middle = (place[:2] + place[2:]) / 2 + np.median(new - old, axis=0)
    half = (place[2:] - place[:2]) / 2 * scale
    return np.concatenate([middle - half, middle + half])


def cut_face(frame: UInt8, box: Box) -> UInt8:
    """The face in the box, resized to 256²."""
    x1, y1, x2, y2 = box
    face = cv2.resize(frame[y1:y2, x1:x2], (CROP_PX, CROP_PX), interpolation=cv2.INTER_LANCZOS4)
    return cast(UInt8, face)


def hard_mask(landmarks: Float32, box: Box, frame_size: tuple[int, int]) -> UInt8:
    """The lower face by a frame's own landmarks, uint8 0/255 `(h, w)`, inside the box."""
    mask = np.zeros(frame_size, np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(landmarks[list(LOWER_FACE)]).astype(np.int32)), 255)
    inside = np.zeros(frame_size, np.uint8)
    inside[box[1] : box[3], box[0] : box[2]] = 255
    return mask & inside


def paste_hard(frame: UInt8, face: UInt8, box: Box, mask: UInt8) -> UInt8:
    """A copy of the frame with the face in the box where the mask is set."""
    x1, y1, x2, y2 = box
    pasted = frame.copy()
    pasted[y1:y2, x1:x2] = cv2.resize(face, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
    return np.where(mask[..., None] > 0, pasted, frame)
