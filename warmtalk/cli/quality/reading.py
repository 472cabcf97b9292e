"""What is seen and heard of a video, beside its source's frames where they are known: crops, meshes, sound, times.

Two passes at most, neither of which holds whole frames: with a sidecar the face lies where that says; without one it is
found first, and cut out along a smooth transform in a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.detect import BlazeMesh, Face
from models.avatar.parse import masks_of
from models.avatar.store import AvatarStore
from models.avatar.track import crop_transforms
from models.errors import AvatarNotFound, CorruptError, InputError, NoFaceError
from models.geometry import apply, warp
from models.quality.frozen import SAME_LEVELS
from models.quality.lips import Mouth, mouth_of
from models.quality.regions import Regions, regions_of
from models.stitch.sidecar import Sidecar, read_sidecar, sidecar_path
from models.types import CROP_PX, Float32, PreparedAvatar, UInt8
from warmtalk.cli.quality.media import Media, frames_of, open_media
from warmtalk.cli.quality.source import Shown, coded_source, recognised, shown_by

Bool = npt.NDArray[np.bool_]
Progress = Callable[[str, int, int], None]  # what is done, frames done, frames in all

MAX_SECONDS = 60.0  # of a video that are looked at; a minute holds 150 MB of crops
MAX_MISSING = 0.5  # share of frames that may lack a face
LOOK_AGAIN = 12  # frames after a face was lost: looking for one costs ten times what following does


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A face in n frames. crops: uint8 `(n, 256, 256, 3)`. mouth: of its meshes, NaN without a face."""

    crops: UInt8
    mouth: Mouth


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """All that gates are judged on.

    made: the video. source: its avatar's own frames through the same encoder, or None. face: bool `(n,)`, where a face
    is seen in both, and nothing is missing. px: frame px a crop px. mask: paste weights `(256, 256)`, or None where not
    known. change: mean grey levels from frame to frame, `(n - 1,)`; own_change: of
    the source. planned: bool `(n,)`, frames that repeat the one
    before on purpose, or because the source stands still there.
    """

    media: Media
    made: Seen
    source: Seen | None
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


def read_video(
    path: Path,
    store: AvatarStore,
    avatar_id: str | None = None,
    seconds: float = MAX_SECONDS,
    progress: Progress | None = None,
) -> Reading:
    """Read the first `seconds` of a video. avatar_id: whose source it is held against where no sidecar says.

    Raises VideoError, NoFaceError, AvatarNotFound (of an id that was given), CorruptError.
    """
    progress = progress or (lambda step, done, total: None)
    media = open_media(path, seconds)
    warnings: list[str] = []
    if media.whole_s > seconds + 0.5:
        warnings.append(f"Only the first {seconds:g} of {media.whole_s:.0f} s were judged.")
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
        warnings.append(f"{error.message} It was left out.")
        return None
    spec = sidecar.spec
    if (spec.width, spec.height) != (media.width, media.height) or abs(spec.fps - media.fps) > 0.1:
        warnings.append(f"{path.name} belongs to another video and was left out.")
        return None
    unknown = int((~sidecar.known).sum())
    if unknown:
        warnings.append(f"The sidecar does not speak of {unknown} of {media.frames} frames.")
    return sidecar if unknown < media.frames else None


def _avatar(
    store: AvatarStore, sidecar: Sidecar | None, avatar_id: str | None, media: Media, warnings: list[str]
) -> PreparedAvatar | None:
    """The source of the video, where it is known and still as it was. Raises AvatarNotFound, InputError."""
    wanted = avatar_id or (sidecar.avatar_id if sidecar is not None else None)
    if wanted is None:
        warnings.append("No sidecar lies beside the video, and no --avatar-id was given: it is judged by itself.")
        return None
    try:
        avatar = store.load(wanted, latents=False)
    except AvatarNotFound as error:
        if avatar_id is not None:
            raise
        warnings.append(f"{error.message} The video is judged by itself.")
        return None
    if (avatar.width // 2 * 2, avatar.height // 2 * 2) != (media.width // 2 * 2, media.height // 2 * 2):
        raise InputError(
            f"The avatar {wanted!r} is {avatar.width}×{avatar.height} px, the video {media.width}×{media.height}.",
            "Name the avatar that the video shows.",
        )
    if sidecar is not None and sidecar.avatar_id == wanted and sidecar.avatar_version != avatar.version:
        warnings.append(f"The avatar {wanted!r} was prepared anew since: the video is judged by itself.")
        return None
    return avatar


def _counted(frames: Iterator[UInt8], step: str, media: Media, progress: Progress) -> Iterator[UInt8]:
    for k, frame in enumerate(frames):
        progress(step, k + 1, media.frames)
        yield frame


def _beside_source(
    media: Media,
    avatar: PreparedAvatar,
    shown: Shown,
    sidecar: Sidecar | None,
    warnings: list[str],
    progress: Progress,
) -> Reading:
    """Both are cut out along the avatar's own transforms, and read at the same place."""
    made, source = _Eyes(media.frames), _Eyes(media.frames)
    whole, original_whole = _Whole(), _Whole()
    own = coded_source(avatar, shown)
    pairs = zip(_counted(frames_of(media), "comparing", media, progress), own, strict=True)
    for k, (frame, original) in enumerate(pairs):
        transform = avatar.transforms[shown.indices[k]]
        place = source.look(k, original, transform)
        made.look(k, frame, transform, place)
        whole.add(frame)
        original_whole.add(original)
    has_face = avatar.has_face[shown.indices] & shown.known
    in_crop = apply(avatar.transforms.astype(np.float64), avatar.landmarks.astype(np.float64))
    mask = avatar.masks[int(shown.indices[0])]
    still = np.concatenate([[False], original_whole.change() < SAME_LEVELS])
    planned = still | np.concatenate([[False], np.diff(shown.indices) == 0])
    return Reading(
        media=media,
        made=made.seen(),
        source=source.seen(),
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


def _alone(media: Media, sidecar: Sidecar | None, warnings: list[str], progress: Progress) -> Reading:
    """A video without its source: the face is found, then cut out along a smooth transform."""
    finder, whole = _Eyes(media.frames), _Whole()
    for k, frame in enumerate(_counted(frames_of(media), "finding the face", media, progress)):
        finder.look(k, frame, None)
        whole.add(frame)
    if finder.found.mean() < 1 - MAX_MISSING:
        raise NoFaceError(
            f"{int((~finder.found).sum())} of {media.frames} frames show no face.", "Judge a video of one face."
        )
    landmarks = np.nan_to_num(finder.landmarks)
    track = crop_transforms(landmarks, finder.found, media.fps)
    in_crop = apply(track.transforms, track.landmarks)
    masks, _ = masks_of(in_crop, media.fps)
    crops = np.empty((media.frames, CROP_PX, CROP_PX, 3), np.uint8)
    for k, frame in enumerate(_counted(frames_of(media), "cutting it out", media, progress)):
        crops[k] = warp(frame, track.transforms[k])
    return Reading(
        media=media,
        made=Seen(crops, mouth_of(finder.meshes)),
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


class _Eyes:
    """Follows the face through n frames, and keeps its crops and meshes."""

    def __init__(self, frames: int) -> None:
        self._mesh, self._last, self._lost = BlazeMesh(), None, LOOK_AGAIN
        self.meshes = np.full((frames, 468, 2), np.nan, np.float32)
        self.landmarks = np.full((frames, 68, 2), np.nan, np.float32)
        self._crops: list[UInt8] = []

    _last: Face | None

    @property
    def found(self) -> Bool:
        seen: Bool = ~np.isnan(self.meshes[:, 0, 0])
        return seen

    def look(self, k: int, frame: UInt8, transform: Float32 | None, place: Face | None = None) -> Face | None:
        """Read frame `k`, at `place` if that is known, else where the face was. Returns the face."""
        near = place or self._last
        faces = self._mesh.detect(frame, near=near) if near is not None or self._lost >= LOOK_AGAIN else []
        self._lost = 0 if faces else (1 if self._lost >= LOOK_AGAIN else self._lost + 1)
        self._last = faces[0] if faces else None
        if faces:
            self.meshes[k], self.landmarks[k] = faces[0].mesh, faces[0].landmarks
        if transform is not None:
            self._crops.append(warp(frame, transform))
        return self._last

    def seen(self) -> Seen:
        return Seen(np.stack(self._crops), mouth_of(self.meshes))


class _Whole:
    """How much whole frames change."""

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
    """Frame px a crop px, the median of all frames."""
    return float(np.median(1 / np.sqrt(np.abs(np.linalg.det(transforms[:, :, :2].astype(np.float64))))))
