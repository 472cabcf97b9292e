"""Analyses a video, and its source if it is known: face crops, face meshes, sound and times.

At most two passes, which keep no whole frames. With a source, faces are cut out along the avatar's transforms; without
one, the first pass finds the face and the second cuts it out along a smooth transform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.detect import BlazeMesh
from models.avatar.face import Face
from models.avatar.parse import masks_of
from models.avatar.store import AvatarStore
from models.avatar.track import crop_transforms
from models.errors import AvatarNotFound, CorruptError, InputError, NoFaceError
from models.geometry import apply, warp
from models.quality.frozen import SAME_LEVELS
from models.quality.lips import LipMeasures, lip_measures
from models.quality.regions import Regions, regions_of
from models.stitch.sidecar import Sidecar, read_sidecar, sidecar_path
from models.types import CROP_PX, Float32, PreparedAvatar, UInt8
from warmtalk.cli.quality.media import Media, frames_of, open_media
from warmtalk.cli.quality.source import SourceFrames, coded_source, recognised, shown_by

Bool = npt.NDArray[np.bool_]
Progress = Callable[[str, int, int], None]  # step, frames done, all frames

MAX_SECONDS = 60.0  # analysed length of a video; the crops of one minute take 150 MB
MAX_MISSING = 0.5  # share of frames without a face
REDETECT_FRAMES = 12  # after a face was lost: detection costs ten times as much as tracking


@dataclass(frozen=True, slots=True, eq=False)
class FaceSequence:
    """A face in n frames. crops: uint8 `(n, 256, 256, 3)`. mouth: from its meshes, NaN without a face."""

    crops: UInt8
    mouth: LipMeasures


@dataclass(frozen=True, slots=True, eq=False)
class VideoAnalysis:
    """Everything that the gates measure.

    made: the video. source: its avatar's frames, encoded the same way, or None. face: bool `(n,)`, whether both show a
    face. px: frame px per crop px. mask: paste weights `(256, 256)`, or None if unknown. change: mean change in grey
    levels between frames, `(n - 1,)`. own_change: that of the source. planned: bool `(n,)`, frames that repeat the one
    before on purpose or because the source does.
    """

    media: Media
    made: FaceSequence
    source: FaceSequence | None
    face: Bool
    px: float
    regions: Regions
    mask: UInt8 | None
    change: npt.NDArray[np.float64]
    own_change: npt.NDArray[np.float64] | None
    planned: Bool
    sidecar: Sidecar | None
    avatar_id: str
    warnings: list[str] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return self.media.frames

    @property
    def fps(self) -> float:
        return self.media.fps

    @property
    def samples(self) -> Float32:
        """Mono at warmtalk.cli.quality.media.SOUND_HZ."""
        return self.media.samples


def analyse_video(
    path: Path,
    store: AvatarStore,
    avatar_id: str | None = None,
    seconds: float = MAX_SECONDS,
    progress: Progress | None = None,
) -> VideoAnalysis:
    """Analyse the first `seconds` of a video. avatar_id: the avatar that it shows, if it has no sidecar.

    Raises VideoError, NoFaceError, AvatarNotFound (for avatar_id), CorruptError.
    """
    progress = progress or (lambda step, done, total: None)
    media = open_media(path, seconds)
    warnings: list[str] = []
    if media.whole_s > seconds + 0.5:
        warnings.append(f"Only the first {seconds:g} of {media.whole_s:.0f} s were analysed.")
    sidecar = _sidecar(media, warnings)
    avatar = _avatar(store, sidecar, avatar_id, media, warnings)
    shown = None
    if avatar is not None:
        if sidecar is not None and sidecar.avatar_id == avatar.avatar_id:
            shown = shown_by(sidecar, avatar, media.keys)
        else:
            shown = recognised(_counted(frames_of(media), "recognising", media, progress), avatar, avatar.fps)
    if avatar is not None and shown is not None:
        return _beside_source(media, avatar, shown, sidecar, warnings, progress)
    return _alone(media, sidecar, warnings, progress)


def _sidecar(media: Media, warnings: list[str]) -> Sidecar | None:
    path = sidecar_path(media.path)
    if not path.is_file():
        return None
    try:
        sidecar = read_sidecar(path, media.frames)
    except CorruptError as error:
        warnings.append(f"{error.message} It is ignored.")
        return None
    spec = sidecar.spec
    if (spec.width, spec.height) != (media.width, media.height) or abs(spec.fps - media.fps) > 0.1:
        warnings.append(f"{path.name} belongs to another video and is ignored.")
        return None
    unknown = int((~sidecar.known).sum())
    if unknown:
        warnings.append(f"The sidecar lacks {unknown} of {media.frames} frames.")
    return sidecar if unknown < media.frames else None


def _avatar(
    store: AvatarStore, sidecar: Sidecar | None, avatar_id: str | None, media: Media, warnings: list[str]
) -> PreparedAvatar | None:
    """The avatar that the video shows, if it is known and unchanged. Raises AvatarNotFound, InputError."""
    wanted = avatar_id or (sidecar.avatar_id if sidecar is not None else None)
    if wanted is None:
        warnings.append("The video has no sidecar and no --avatar-id was given: it is analysed without its source.")
        return None
    try:
        avatar = store.load(wanted, latents=False)
    except AvatarNotFound as error:
        if avatar_id is not None:
            raise
        warnings.append(f"{error.message} The video is analysed without its source.")
        return None
    if (avatar.width // 2 * 2, avatar.height // 2 * 2) != (media.width // 2 * 2, media.height // 2 * 2):
        raise InputError(
            f"The avatar {wanted!r} is {avatar.width}×{avatar.height} px, the video {media.width}×{media.height}.",
            "Pass the avatar that the video shows with --avatar-id.",
        )
    if sidecar is not None and sidecar.avatar_id == wanted and sidecar.avatar_version != avatar.version:
        warnings.append(f"The avatar {wanted!r} was prepared again since: the video is analysed without its source.")
        return None
    return avatar


def _counted(frames: Iterator[UInt8], step: str, media: Media, progress: Progress) -> Iterator[UInt8]:
    for k, frame in enumerate(frames):
        progress(step, k + 1, media.frames)
        yield frame


def _beside_source(
    media: Media,
    avatar: PreparedAvatar,
    shown: SourceFrames,
    sidecar: Sidecar | None,
    warnings: list[str],
    progress: Progress,
) -> VideoAnalysis:
    """Cut both faces out along the avatar's transforms and read them at the same place."""
    made, source = _FaceReader(media.frames), _FaceReader(media.frames)
    whole, original_whole = _FrameChange(), _FrameChange()
    own = coded_source(avatar, shown)
    pairs = zip(_counted(frames_of(media), "comparing", media, progress), own, strict=True)
    for k, (frame, original) in enumerate(pairs):
        transform = avatar.transforms[shown.indices[k]]
        place = source.read(k, original, transform)
        made.read(k, frame, transform, place)
        whole.add(frame)
        original_whole.add(original)
    has_face = avatar.has_face[shown.indices] & shown.known
    in_crop = apply(avatar.transforms.astype(np.float64), avatar.landmarks.astype(np.float64))
    mask = avatar.masks[int(shown.indices[0])]
    still = np.concatenate([[False], original_whole.change() < SAME_LEVELS])
    planned = still | np.concatenate([[False], np.diff(shown.indices) == 0])
    return VideoAnalysis(
        media=media,
        made=made.sequence(),
        source=source.sequence(),
        face=has_face & made.found & source.found,
        px=_frame_px(avatar.transforms),
        regions=regions_of(np.median(in_crop, axis=0), mask),
        mask=mask,
        change=whole.change(),
        own_change=original_whole.change(),
        planned=planned,
        sidecar=sidecar,
        avatar_id=avatar.avatar_id,
        warnings=warnings,
    )


def _alone(media: Media, sidecar: Sidecar | None, warnings: list[str], progress: Progress) -> VideoAnalysis:
    """Without a source: find the face, then cut it out along a smooth transform."""
    finder, whole = _FaceReader(media.frames), _FrameChange()
    for k, frame in enumerate(_counted(frames_of(media), "finding the face", media, progress)):
        finder.read(k, frame, None)
        whole.add(frame)
    if finder.found.mean() < 1 - MAX_MISSING:
        raise NoFaceError(
            f"{int((~finder.found).sum())} of {media.frames} frames show no face.", "Use a video of one face."
        )
    landmarks = np.nan_to_num(finder.landmarks)
    track = crop_transforms(landmarks, finder.found, media.fps)
    in_crop = apply(track.transforms, track.landmarks)
    masks, _ = masks_of(in_crop, media.fps)
    crops = np.empty((media.frames, CROP_PX, CROP_PX, 3), np.uint8)
    for k, frame in enumerate(_counted(frames_of(media), "cutting out the face", media, progress)):
        crops[k] = warp(frame, track.transforms[k])
    return VideoAnalysis(
        media=media,
        made=FaceSequence(crops, lip_measures(finder.meshes)),
        source=None,
        face=finder.found,
        px=_frame_px(track.transforms),
        regions=regions_of(np.median(in_crop, axis=0).astype(np.float64), masks[0]),
        mask=None,
        change=whole.change(),
        own_change=None,
        planned=np.zeros(media.frames, bool)
        if sidecar is None
        else np.concatenate([[False], np.diff(sidecar.avatar_frames) == 0]),
        sidecar=sidecar,
        avatar_id="" if sidecar is None else sidecar.avatar_id,
        warnings=warnings,
    )


class _FaceReader:
    """Tracks the face through n frames and keeps its crops and meshes."""

    def __init__(self, frames: int) -> None:
        self._mesh, self._last, self._lost = BlazeMesh(), None, REDETECT_FRAMES
        self.meshes = np.full((frames, 468, 2), np.nan, np.float32)
        self.landmarks = np.full((frames, 68, 2), np.nan, np.float32)
        self._crops: list[UInt8] = []

    _last: Face | None

    @property
    def found(self) -> Bool:
        found: Bool = ~np.isnan(self.meshes[:, 0, 0])
        return found

    def read(self, k: int, frame: UInt8, transform: Float32 | None, place: Face | None = None) -> Face | None:
        """Read frame `k`, near `place` if given, else near the last face; cut it out if `transform` is given."""
        near = place or self._last
        faces = self._mesh.detect(frame, near=near) if near is not None or self._lost >= REDETECT_FRAMES else []
        self._lost = 0 if faces else (1 if self._lost >= REDETECT_FRAMES else self._lost + 1)
        self._last = faces[0] if faces else None
        if faces:
            self.meshes[k], self.landmarks[k] = faces[0].mesh, faces[0].landmarks
        if transform is not None:
            self._crops.append(warp(frame, transform))
        return self._last

    def sequence(self) -> FaceSequence:
        return FaceSequence(np.stack(self._crops), lip_measures(self.meshes))


class _FrameChange:
    """Mean change between whole frames, in grey levels."""

    def __init__(self) -> None:
        self._last: npt.NDArray[np.float32] | None = None
        self._change: list[float] = []

    def add(self, frame: UInt8) -> None:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        if self._last is not None:
            self._change.append(float(np.abs(grey - self._last).mean()))
        self._last = grey

    def change(self) -> npt.NDArray[np.float64]:
        return np.array(self._change)


def _frame_px(transforms: Float32) -> float:
    """Frame px per crop px, the median of all frames."""
    return float(np.median(1 / np.sqrt(np.abs(np.linalg.det(transforms[:, :, :2].astype(np.float64))))))
