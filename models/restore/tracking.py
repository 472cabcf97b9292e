"""Tracks the largest face through a stream of frames, and smooths its position with a short look-ahead.

`models.avatar.track` sees a whole video at once; this module keeps a short window, so a video may have any length.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from models.avatar.face import Face, FaceDetector
from models.avatar.smoothing import SMOOTH_S, smooth
from models.geometry import apply, invert
from models.restore.align import five_points, to_template
from models.types import RESTORED_PX, UInt8

Float64 = npt.NDArray[np.float64]
P = TypeVar("P")

REACH = 3.0  # standard deviations of the smoothing kernel: neighbours farther away weigh under 1 %
JUMP = 0.4  # of the distance between the eyes: a face that moves more from one frame to the next starts a new shot
SEARCH_EVERY = 4  # frames, after a second without a face: a full search takes half a second at 1080p
MAX_LOOKAHEAD = 24  # frames, at any frame rate: they are held in memory
CENTRE = np.full(2, (RESTORED_PX - 1) / 2)  # of the template


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrame(Generic[P]):
    """A frame and the face in it.

    payload: what came with the frame. transform: `(2, 3)`, frame px → FFHQ template of 512 px; None where no face was
    found. shot: a number that increases where the face jumps or is not found; nothing may be blended across shots.
    """

    frame: UInt8
    payload: P
    index: int
    transform: Float64 | None
    shot: int


@dataclass(slots=True, eq=False)
class _Entry(Generic[P]):
    """A frame in the window, before smoothing."""

    frame: UInt8
    payload: P
    index: int
    pose: Float64 | None  # angle, log of the scale, and where the template's centre lies in the frame: (4,)
    shot: int


def lookahead_frames(fps: float) -> int:
    """Return how many frames `track_faces` looks ahead, and back, at a frame rate."""
    return int(np.clip(math.ceil(REACH * SMOOTH_S * fps), 1, MAX_LOOKAHEAD))


def track_faces(
    frames: Iterable[tuple[UInt8, P]], detector: FaceDetector, fps: float, first_index: int = 0
) -> Iterator[TrackedFrame[P]]:
    """Yield every frame of `frames` (RGB uint8, each with a payload) in order, `lookahead_frames(fps)` frames later.

    The face's position is smoothed over its neighbours in the same shot, before and after, so it neither lags nor
    jitters.
    """
    reach, sigma = lookahead_frames(fps), SMOOTH_S * fps
    window: deque[_Entry[P]] = deque()
    waiting = 0  # entries at the window's end that have not been yielded
    face: Face | None = None
    shot = absent = 0
    for index, (frame, payload) in enumerate(frames, start=first_index):
        jumped = True
        if absent <= fps or index % SEARCH_EVERY == 0:
            face, jumped = _find(detector, frame, face)
        absent = 0 if face is not None else absent + 1
        shot += jumped
        window.append(_Entry(frame, payload, index, None if face is None else _pose(face), shot))
        waiting += 1
        if waiting > reach:
            yield _smoothed(window, len(window) - waiting, sigma)
            waiting -= 1
            _trim(window, len(window) - waiting, reach)
    while waiting:
        yield _smoothed(window, len(window) - waiting, sigma)
        waiting -= 1


def _find(detector: FaceDetector, frame: UInt8, before: Face | None) -> tuple[Face | None, bool]:
    """The largest face, and whether it starts a new shot."""
    if before is not None:
        near = detector.detect(frame, near=before)
        if near and not _jumped(before, near[0]):
            return near[0], False
    faces = detector.detect(frame)
    if not faces:
        return None, True
    return faces[0], before is None or _jumped(before, faces[0])


def _jumped(before: Face, after: Face) -> bool:
    old, new = five_points(before.landmarks), five_points(after.landmarks)
    return bool(np.linalg.norm(new - old, axis=1).mean() > JUMP * np.linalg.norm(old[1] - old[0]))


def _pose(face: Face) -> Float64:
    transform = to_template(five_points(face.landmarks))
    centre = apply(invert(transform), CENTRE)
    return np.array([math.atan2(transform[1, 0], transform[0, 0]), math.log(math.hypot(*transform[:, 0])), *centre])


def _smoothed(window: deque[_Entry[P]], at: int, sigma: float) -> TrackedFrame[P]:
    """The entry at `at`, its pose smoothed over its shot."""
    entry = window[at]
    if entry.pose is None:
        return TrackedFrame(entry.frame, entry.payload, entry.index, None, entry.shot)
    near = [other for other in window if other.shot == entry.shot]  # a shot has a face in every frame, without gaps
    poses = np.stack([other.pose for other in near if other.pose is not None])  # (m, 4)
    poses[:, 0] = np.unwrap(poses[:, 0])
    angle, log_scale, *centre = smooth(poses, np.ones(len(poses)), sigma)[entry.index - near[0].index]
    cos, sin = math.exp(log_scale) * math.cos(angle), math.exp(log_scale) * math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    transform = np.concatenate([linear, (CENTRE - linear @ np.array(centre))[:, None]], 1)
    return TrackedFrame(entry.frame, entry.payload, entry.index, transform, entry.shot)


def _trim(window: deque[_Entry[P]], done: int, reach: int) -> None:
    """Keep the last `reach` yielded entries, and of the newest of them only the pose."""
    while done > reach:
        window.popleft()
        done -= 1
    if done:
        window[done - 1].frame = np.empty((0, 0, 3), np.uint8)
