"""The first pass over a video: stores every frame, and finds the face, its motion and the cuts.

Keeps at most two frames in memory, and FRAMES_AHEAD that were read in advance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.avatar.cuts import CutDetector, CutEvidence, find_cuts
from models.avatar.dissolves import thumb, with_dissolves
from models.avatar.face import Face, FaceDetector
from models.avatar.flow import FaceFlow, Motion
from models.avatar.source import AvatarSource
from models.media.frames import FrameWriter
from models.runtime.prefetch import prefetched
from models.types import UInt8

COUNT_EVERY = 25  # frames between two searches for all faces; between them, only one face is tracked
FRAMES_AHEAD = 2
MAX_STEP = 0.1  # face sizes per frame: a tracked face that moves farther may be read off-centre and is searched again
LOST_TIMEOUT_S = 3.0  # within a shot, time to wait for a hidden face before another one is tracked instead

Progress = Callable[[int, int], None]  # frames done, frames expected
DetectedBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The results of the first pass for n frames.

    landmarks: `(n, 68, 2)`, zero without a face. has_face: `(n,)`. boxes: the detector's, None without a face. size_px:
    `(n,)`, zero without a face. motions: of the rigid face from the frame before, None where not known. cuts: frames
    that begin a new scene. most_faces: most faces in one frame. copied: whether the source's own stream was stored.
    """

    landmarks: npt.NDArray[np.float32]
    has_face: npt.NDArray[np.bool_]
    boxes: list[DetectedBox | None]
    size_px: npt.NDArray[np.float32]
    motions: list[Motion | None]
    cuts: list[int]
    most_faces: int
    copied: bool


def survey_video(
    source: AvatarSource, detector: FaceDetector, target: Path, crf: float, copy_video: bool, progress: Progress
) -> Survey:
    """Store every frame of `source` in `target`, and find the face in it.

    One face is tracked; every COUNT_EVERY frames all faces are counted. crf: x264's, where the source's own stream is
    not copied. Raises VideoError.
    """
    copied = copy_video and source.copy_stream(target)
    tracker = FaceTracker(detector, round(LOST_TIMEOUT_S * source.target_fps))
    read = source.frames() if copied else _stored(source, target, crf)
    with closing(prefetched(read, FRAMES_AHEAD)) as frames:  # one thread reads and stores, this one finds faces
        for k, frame in enumerate(frames):
            tracker.take(frame)
            progress(k + 1, max(source.expected, k + 1))
    return tracker.survey(copied)


def _stored(source: AvatarSource, target: Path, crf: float) -> Iterator[UInt8]:
    """The frames of `source`, each after it was written to `target`."""
    writer = FrameWriter(target, source.width, source.height, source.target_fps, crf)
    for frame in source.frames():
        writer.write(frame)
        yield frame
    writer.close()


class FaceTracker:
    """Tracks one face through the frames of a video, in order. Not thread-safe.

    timeout_frames: how long to wait for a hidden face before another one is tracked instead.
    """

    def __init__(self, detector: FaceDetector, timeout_frames: int = round(LOST_TIMEOUT_S * 25)) -> None:
        self._timeout = timeout_frames
        self._detector, self._flow, self._cuts = detector, FaceFlow(), CutDetector()
        self._faces: list[Face | None] = []
        self._motions: list[Motion | None] = []
        self._evidence: list[CutEvidence | None] = []
        self._thumbs: list[UInt8] = []  # 1 KB per frame
        self._last: Face | None = None
        self._remaining = timeout_frames  # frames until any face is accepted
        self._most = 0

    def take(self, frame: UInt8) -> None:
        """Find the face in the next frame, RGB uint8 `(h, w, 3)`."""
        before = self._faces[-1] if self._faces else None
        if self._cuts.new_picture(frame):
            before, self._remaining = None, 0  # another shot, or a flash: there is no face to track
        count_all = len(self._faces) % COUNT_EVERY == 0
        face, count = _find(self._detector, frame, before, self._last, count_all, self._remaining <= 0)
        self._remaining = self._remaining - 1 if face is None else self._timeout
        landmarks = None if face is None else face.landmarks
        motion = self._flow.step(frame, landmarks)
        self._evidence.append(self._cuts.compare(landmarks, motion))
        self._motions.append(motion)
        self._faces.append(face)
        self._thumbs.append(thumb(frame))
        self._last, self._most = face or self._last, max(self._most, count)

    def survey(self, copied: bool) -> Survey:
        """Return the results of all frames taken; at least one."""
        faces, nothing = self._faces, np.zeros((68, 2), np.float32)
        cuts = with_dissolves(find_cuts(self._evidence), self._thumbs)
        return Survey(
            landmarks=np.stack([nothing if face is None else face.landmarks for face in faces]),
            has_face=np.array([face is not None for face in faces]),
            boxes=[None if face is None else face.box for face in faces],
            size_px=np.array([0 if face is None else face.size_px for face in faces], np.float32),
            motions=[None if k in cuts else motion for k, motion in enumerate(self._motions)],
            cuts=cuts,
            most_faces=self._most,
            copied=copied,
        )


def _find(
    detector: FaceDetector, frame: UInt8, before: Face | None, last: Face | None, count: bool, any_face: bool
) -> tuple[Face | None, int]:
    """The face in a frame, and the number of faces (1 where they were not counted).

    The face of the frame before is tracked. If it is lost or moved far, all faces are searched for the one with the
    same appearance and an uncovered mouth, nearest to its last position. With `any_face`, another face is accepted too.
    """
    tracked = detector.detect(frame, before)[:1] if before is not None else []
    moved_far = bool(tracked) and before is not None and _step(before, tracked[0]) > MAX_STEP
    if tracked and not count and not moved_far:
        return tracked[0], 1
    found = detector.detect(frame)
    if last is None:
        return (found[0] if found else None), len(found)
    known = [face for face in map(last.recognised, found) if face is not None]
    if tracked and not (moved_far and known):
        return tracked[0], max(1, len(found))
    here = np.mean(last.mesh, axis=0)
    candidates = known or (found if any_face else [])
    near = sorted(candidates, key=lambda face: float(np.linalg.norm(face.mesh.mean(0) - here)))
    return (near[0] if near else None), len(found)


def _step(before: Face, now: Face) -> float:
    """Distance that the face moved, in face sizes."""
    return float(np.linalg.norm(np.mean(now.landmarks - before.landmarks, axis=0))) / max(1.0, before.size_px)
