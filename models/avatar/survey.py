"""The first pass over a video: stores every frame and notes where the face is, how it moved, and where it is cut.

Holds a frame or two at a time. Knows nothing of crops, masks and latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.avatar.cuts import CutDetector, CutEvidence, find_cuts
from models.avatar.dissolves import thumb, with_dissolves
from models.avatar.face import Face, FaceDetector
from models.avatar.flow import FaceFlow, Motion
from models.avatar.source import Source
from models.media.frames import FrameWriter
from models.types import UInt8

COUNT_EVERY = 25  # frames between two counts of all faces; between them only one is followed
LEAP = 0.1  # of the face's size in one frame: what is followed so far may be read off-centre, and is looked for anew

PATIENCE_S = 3.0  # how long a face that is hidden or away is waited for, within a shot, before another is taken for it

Counted = Callable[[int, int], None]  # frames done, frames expected
DetectedBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What the first pass saw, a slot a frame."""

    landmarks: npt.NDArray[np.float32]  # (n, 68, 2); zero without a face
    has_face: npt.NDArray[np.bool_]  # (n,)
    boxes: list[DetectedBox | None]  # the detector's; None without a face
    size_px: npt.NDArray[np.float32]  # (n,); zero without a face
    motions: list[Motion | None]  # of the rigid face, from the frame before; None where it is not known
    cuts: list[int]  # frames that begin a new scene
    most_faces: int
    copied: bool  # the source's own stream was stored


def survey_video(
    source: Source, detector: FaceDetector, target: Path, crf: float, copy_video: bool, counted: Counted
) -> Survey:
    """Store every frame of `source` in `target`, and find the face in it. One is followed; all are counted at times.

    crf: x264's, where the source's own stream is not copied. Raises VideoError.
    """
    copied = copy_video and source.copy_stream(target)
    writer = None if copied else FrameWriter(target, source.width, source.height, source.target_fps, crf)
    follower = FaceTracker(detector, round(PATIENCE_S * source.target_fps))
    for k, frame in enumerate(source.frames()):
        if writer is not None:
            writer.write(frame)
        follower.take(frame)
        counted(k + 1, max(source.expected, k + 1))
    if writer is not None:
        writer.close()
    return follower.survey(copied)


class FaceTracker:
    """Follows the face through frames, one after the other; holds the last. Not thread-safe.

    patience: frames that a hidden face is waited for.
    """

    def __init__(self, detector: FaceDetector, patience: int = round(PATIENCE_S * 25)) -> None:
        self._patience = patience
        self._detector, self._flow, self._watch = detector, FaceFlow(), CutDetector()
        self._faces: list[Face | None] = []
        self._motions: list[Motion | None] = []
        self._signs: list[CutEvidence | None] = []
        self._thumbs: list[UInt8] = []  # a kilobyte a frame
        self._last: Face | None = None
        self._wanted = patience  # frames until any face will do
        self._most = 0

    def take(self, frame: UInt8) -> None:
        before = self._faces[-1] if self._faces else None
        if self._watch.new_picture(frame):
            before, self._wanted = None, 0  # nothing to follow: it is another shot, or a flash
        count_all = len(self._faces) % COUNT_EVERY == 0
        face, count = _find(self._detector, frame, before, self._last, count_all, self._wanted <= 0)
        self._wanted = self._wanted - 1 if face is None else self._patience
        landmarks = None if face is None else face.landmarks
        motion = self._flow.step(frame, landmarks)
        self._signs.append(self._watch.sign(landmarks, motion))
        self._motions.append(motion)
        self._faces.append(face)
        self._thumbs.append(thumb(frame))
        self._last, self._most = face or self._last, max(self._most, count)

    def survey(self, copied: bool) -> Survey:
        faces, nothing = self._faces, np.zeros((68, 2), np.float32)
        cuts = with_dissolves(find_cuts(self._signs), self._thumbs)
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
    detector: FaceDetector, frame: UInt8, before: Face | None, last: Face | None, count: bool, anyone: bool
) -> tuple[Face | None, int]:
    """The face in a frame, and how many there are (1 where they were not counted).

    The face of the frame before is followed. Lost, or found far away, it is looked for anew: the one that looks like
    it, with nothing before its mouth, nearest to where it was last seen. Where `anyone` will do, it may look different.
    """
    followed = detector.detect(frame, before)[:1] if before is not None else []
    leapt = bool(followed) and before is not None and _leap(before, followed[0]) > LEAP
    if followed and not count and not leapt:
        return followed[0], 1
    found = detector.detect(frame)
    if last is None:
        return (found[0] if found else None), len(found)
    known = [face for face in map(last.recognised, found) if face is not None]
    if followed and not (leapt and known):
        return followed[0], max(1, len(found))
    here = np.mean(last.mesh, axis=0)
    near = sorted(known or (found if anyone else []), key=lambda face: float(np.linalg.norm(face.mesh.mean(0) - here)))
    return (near[0] if near else None), len(found)


def _leap(before: Face, now: Face) -> float:
    """How far the face went, in sizes of itself."""
    return float(np.linalg.norm(np.mean(now.landmarks - before.landmarks, axis=0))) / max(1.0, before.size_px)
