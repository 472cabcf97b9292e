"""Turns a video or a picture into a prepared avatar. Knows no VAE: it is handed the function that encodes crops."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.avatar import contact
from models.avatar.detect import BlazeMesh, Face, FaceDetector
from models.avatar.frames import FRAMES_CRF, GOP_BYTES, FrameWriter, VideoFrames
from models.avatar.parse import masks_of
from models.avatar.source import Source, open_source
from models.avatar.store import CONTACT, FRAMES, AvatarStore, Draft, write_png
from models.avatar.track import MAX_MISSING, SMOOTH_S, Track, TrackOptions, crop_transforms, in_crop, shift_range
from models.avatar.warp import warp
from models.errors import ConfigError, CorruptError
from models.ids import check_id
from models.types import CROP_PX, SUPPORTED_FPS, Float16, UInt8

Progress = Callable[[str, int, int], None]  # step, done, total (0: not known)
EncodeReference = Callable[[UInt8], Any]  # crops (n, 256, 256, 3) → latents (n, 8, 32, 32), array or tensor

COUNT_EVERY = 25  # frames between two counts of all faces; between them only one is followed
TINY_PX = 96  # below it a mouth is about 30 px wide: there is nothing to learn from, and little to see
FINDING, ENCODING = "finding faces", "encoding faces"


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How an avatar is prepared. The manual's names where it has them.

    fps: 24, 25 or 30. bbox_shift, extra_margin: frame px, see `musetalk_box`. max_seconds: a longer video is refused.
    batch_size: crops in one VAE call. shape, scale_lock, smooth_s, max_missing: see TrackOptions. frames_crf: x264's
    quality of the stored frames. copy_video: keep the source's H.264 stream where it already fits. contact_frames: how
    many frames the contact sheet shows. Raises ConfigError.
    """

    fps: int = 25
    bbox_shift: int = 0
    extra_margin: int = 10
    max_seconds: float = 120.0
    batch_size: int = 4
    shape: str = "square"
    scale_lock: bool = True
    smooth_s: float = SMOOTH_S
    max_missing: float = MAX_MISSING
    frames_crf: float = FRAMES_CRF
    copy_video: bool = True
    contact_frames: int = 8

    def __post_init__(self) -> None:
        if self.fps not in SUPPORTED_FPS:
            raise ConfigError(f"fps is {self.fps}.", f"Use one of {', '.join(map(str, SUPPORTED_FPS))}.")
        if (
            min(self.batch_size, self.contact_frames) < 1
            or self.max_seconds <= 0
            or not 0 <= self.max_missing <= 1
            or self.extra_margin < 0
        ):
            raise ConfigError("batch_size, max_seconds, max_missing or extra_margin is out of range.", "See --help.")

    @property
    def track(self) -> TrackOptions:
        names = [item.name for item in dataclasses.fields(TrackOptions)]
        return TrackOptions(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What came of it. Sizes in frame px as (min, median, max): `face_px` of the face, `crop_px` of the crop's side."""

    avatar_id: str
    version: str
    frames: int
    frames_without_face: int
    faces: int  # most that were seen in one frame
    face_px: tuple[int, int, int]
    crop_px: tuple[int, int, int]
    bbox_shift_range: tuple[int, int]
    video_copied: bool  # the source's own H.264 stream serves as frames; otherwise it was encoded again
    seconds: float
    contact_sheet: str
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class _Survey:
    """What the first pass saw, a slot a frame."""

    landmarks: npt.NDArray[np.float32]  # (n, 68, 2); zero without a face
    has_face: npt.NDArray[np.bool_]  # (n,)
    size_px: npt.NDArray[np.float32]  # (n,); zero without a face
    most_faces: int
    copied: bool  # the source's own stream was stored


def prepare_avatar(
    source: Path,
    avatar_id: str,
    store: AvatarStore,
    encode_reference: EncodeReference,
    vae_fingerprint: str,
    options: PrepareOptions | None = None,
    force: bool = False,
    progress: Progress | None = None,
    detector: FaceDetector | None = None,
) -> PrepareReport:
    """Prepare `source` as avatar `avatar_id` of `store`, whole or not at all; the same video gives the same bytes.

    Two passes, neither of which holds more than a few frames: find the face in every frame while storing them; then cut
    crops out of the frames *as stored*, and encode them. Raises IdError, ExistsError, VideoError, NoFaceError,
    ConfigError.
    """
    started = time.perf_counter()
    options, progress = options or PrepareOptions(), progress or (lambda step, done, total: None)
    check_id(avatar_id, "avatar id")
    store.refuse_existing(avatar_id, force)
    video = open_source(Path(source), options.fps, options.max_seconds)
    with store.write(avatar_id, force) as draft:
        survey = _survey(video, detector or BlazeMesh(), draft, options, progress)
        track = crop_transforms(survey.landmarks, survey.has_face, options.fps, options.track)
        masks, mask_index = masks_of(in_crop(track), options.fps)
        with (draft.folder / FRAMES).open("rb") as file:
            frames = VideoFrames(file, FRAMES, cache_bytes=GOP_BYTES)
            _encode(frames, track, survey, masks, mask_index, draft, encode_reference, options, progress)
        draft.write_geometry(track.transforms, track.landmarks, survey.has_face, masks, mask_index)
        facts = _facts(survey, track, video)
        draft.meta |= {
            "fps": options.fps,
            "width": video.width,
            "height": video.height,
            "frames": len(survey.has_face),
            "vae_fingerprint": vae_fingerprint,
            "source": {"name": video.path.name, "sha256": video.sha256, "kind": video.kind, "fps": video.fps},
            "settings": {
                k: v for k, v in dataclasses.asdict(options).items() if k not in ("batch_size", "max_seconds")
            },
            "facts": facts,
        }
    folder = store.folder(avatar_id)
    return PrepareReport(
        avatar_id=avatar_id,
        version=store.version(avatar_id),
        seconds=round(time.perf_counter() - started, 2),
        contact_sheet=str(folder / CONTACT),
        **facts,
    )


def _survey(
    source: Source, detector: FaceDetector, draft: Draft, options: PrepareOptions, progress: Progress
) -> _Survey:
    """First pass: store every frame, and find the face in it. One face is followed; all are counted now and then."""
    target = draft.folder / FRAMES
    copied = options.copy_video and source.copy_stream(target)
    writer = None if copied else FrameWriter(target, source.width, source.height, options.fps, options.frames_crf)
    faces: list[Face | None] = []
    most, last = 0, None
    for k, frame in enumerate(source.frames()):
        if writer is not None:
            writer.write(frame)
        face, count = _find(detector, frame, faces[-1] if faces else None, last, k % COUNT_EVERY == 0)
        faces.append(face)
        most, last = max(most, count), face or last
        progress(FINDING, k + 1, max(source.expected, k + 1))
    if writer is not None:
        writer.close()
    nothing = np.zeros((68, 2), np.float32)
    return _Survey(
        landmarks=np.stack([nothing if face is None else face.landmarks for face in faces]),
        has_face=np.array([face is not None for face in faces]),
        size_px=np.array([0 if face is None else face.size_px for face in faces], np.float32),
        most_faces=most,
        copied=copied,
    )


def _find(
    detector: FaceDetector, frame: UInt8, before: Face | None, last: Face | None, count: bool
) -> tuple[Face | None, int]:
    """The face in a frame, and how many there are (1 where they were not counted).

    The face of the frame before is followed. Lost, it is looked for anew: the one nearest to where it was last seen,
    or the largest.
    """
    followed = detector.detect(frame, before)[:1] if before is not None else []
    if followed and not count:
        return followed[0], 1
    found = detector.detect(frame)
    if followed:
        return followed[0], max(1, len(found))
    if not found:
        return None, 0
    if last is None:
        return found[0], len(found)
    here = np.mean(last.mesh, axis=0)
    return min(found, key=lambda face: float(np.linalg.norm(np.mean(face.mesh, axis=0) - here))), len(found)


def _encode(
    frames: VideoFrames,
    track: Track,
    survey: _Survey,
    masks: UInt8,
    mask_index: npt.NDArray[np.int32],
    draft: Draft,
    encode_reference: EncodeReference,
    options: PrepareOptions,
    progress: Progress,
) -> None:
    """Second pass: latents of the crops of the stored frames, and the contact sheet."""
    n = len(track.transforms)
    if len(frames) != n:
        raise CorruptError(f"{len(frames)} of {n} frames were stored.", "Prepare the avatar again.")
    latents = np.empty((n, 8, 32, 32), np.float16)
    shown, cells = set(contact.pick_frames(n, options.contact_frames)), []
    for start in range(0, n, options.batch_size):
        batch = range(start, min(n, start + options.batch_size))
        crops = np.empty((len(batch), CROP_PX, CROP_PX, 3), np.uint8)
        for k in batch:
            crops[k - start] = warp(frames[k], track.transforms[k])
            if k in shown:
                marks = track.transforms[k], track.landmarks[k], masks[mask_index[k]], bool(survey.has_face[k])
                cells.append(contact.cell(frames[k], *marks, k))
        latents[batch.start : batch.stop] = _to_float16(encode_reference(crops), len(batch))
        progress(ENCODING, batch.stop, n)
    draft.write_latents(latents)
    write_png(draft.folder / CONTACT, contact.sheet(cells))


def _to_float16(latents: Any, n: int) -> Float16:
    """An array or a torch tensor `(n, 8, 32, 32)` as float16."""
    if hasattr(latents, "detach"):
        latents = latents.detach().float().cpu().numpy()
    array = np.asarray(latents)
    if array.shape != (n, 8, 32, 32):
        raise ConfigError(f"The VAE returns latents of shape {array.shape}, not {(n, 8, 32, 32)}.", "Check its folder.")
    return array.astype(np.float16)


def _facts(survey: _Survey, track: Track, source: Source) -> dict[str, Any]:
    """The report's numbers and warnings."""
    sizes, n, missing = survey.size_px[survey.has_face], len(survey.has_face), int((~survey.has_face).sum())
    face_px, crop_px = _spread(sizes), _spread(track.side_px)
    warnings = list(source.warnings)
    if missing:
        warnings.append(f"{missing} of {n} frames show no face and are played as they are.")
    if survey.most_faces > 1:
        warnings.append(f"{survey.most_faces} faces were seen; the largest of the first frame was followed.")
    if face_px[1] > CROP_PX:
        warnings.append(
            f"The face is {face_px[1]} px large; faces are made at {CROP_PX} px, so its lower half loses detail: "
            "use enhancement, or a smaller video."
        )
    if face_px[1] < TINY_PX:
        warnings.append(f"The face is only {face_px[1]} px large: the mouth will be coarse. Use a closer shot.")
    if source.fps and abs(source.fps - source.target_fps) > 0.01:
        warnings.append(f"The video has {source.fps:.5g} frames a second: frames were dropped or repeated.")
    if not track.scale_locked:
        warnings.append("The face changes its size by more than 8 %: the crop follows it.")
    return {
        "frames": n,
        "frames_without_face": missing,
        "faces": survey.most_faces,
        "face_px": face_px,
        "crop_px": crop_px,
        "bbox_shift_range": shift_range(track.landmarks, survey.has_face),
        "video_copied": survey.copied,
        "warnings": warnings,
    }


def _spread(values: npt.NDArray[np.float32]) -> tuple[int, int, int]:
    """(min, median, max), rounded."""
    return round(float(values.min())), round(float(np.median(values))), round(float(values.max()))
