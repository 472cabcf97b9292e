"""Turns a video or a picture into a prepared avatar. Knows no VAE: it is handed the function that encodes crops."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar import contact_sheet
from models.avatar.crop_geometry import GEOMETRIES, CropGeometry, crop_geometry
from models.avatar.detect import DETECTORS, open_detector
from models.avatar.face import FaceDetector
from models.avatar.packed_regions import RegionPacker
from models.avatar.parse import CHEEK_PX, PARSE_PX, REGION_MODES, FaceParser, masks_of, paste_region, region_mask
from models.avatar.source import Source, open_source
from models.avatar.store import CONTACT, FRAMES, AvatarStore, Draft, write_png
from models.avatar.survey import Survey, survey_video
from models.avatar.track import CropTrack, TrackOptions, landmarks_in_crop, shift_range
from models.errors import ConfigError, CorruptError
from models.geometry import crop_box_of, crop_padded
from models.media.frames import FRAMES_CRF, GOP_BYTES, VideoFrames
from models.runtime.ids import check_id
from models.types import CROP_PX, SUPPORTED_FPS, Float16, Int32, UInt8

Progress = Callable[[str, int, int], None]  # step, done, total (0: not known)
EncodeReference = Callable[[UInt8], Any]  # crops (n, 256, 256, 3) → latents (n, 8, 32, 32), array or tensor

TINY_PX = 96  # below it a mouth is about 30 px wide: there is nothing to learn from, and little to see
FINDING, ENCODING = "finding faces", "encoding faces"
PLACES = ("detector_weights", "parser_weights", "device")  # options that say where, and not what, is done


class Parser(Protocol):
    """What preparation asks of a face parser."""

    def labels(self, face_rgb: UInt8) -> npt.NDArray[np.int64]:
        """RGB `(h, w, 3)` → CelebAMask-HQ's classes `(512, 512)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions(TrackOptions):
    """How an avatar is prepared: how its crops are laid (TrackOptions), and the rest. The manual's names where it has
    them.

    fps: 24, 25 or 30. max_seconds: a longer video is refused. batch_size: crops in one VAE call. frames_crf: x264's
    quality of the stored frames. copy_video: keep the source's H.264 stream where it already fits. contact_frames: how
    many frames the contact sheet shows.

    geometry: `similarity`, `box` or `musetalk`, see models/avatar/crop_geometry.py. detector: `blazemesh` or `dwpose`.
    detector_weights: DWPose's ONNX file. parser_weights: BiSeNet's file; with geometry `musetalk` and without it the
    mask follows the landmarks. parsing_mode, cheek_width: see `paste_region`. device: of the parser.
    MuseTalk v1.0's weights know faces of geometry `musetalk`, extra_margin 0 and parsing_mode `raw`; v1.5's, 10 and
    `jaw`. Raises ConfigError.
    """

    fps: int = 25
    max_seconds: float = 120.0
    batch_size: int = 4
    frames_crf: float = FRAMES_CRF
    copy_video: bool = True
    contact_frames: int = 8
    geometry: str = "similarity"
    detector: str = "blazemesh"
    detector_weights: str | Path | None = None
    parser_weights: str | Path | None = None
    parsing_mode: str = "jaw"
    cheek_width: int = CHEEK_PX
    device: str = "cpu"

    def __post_init__(self) -> None:
        TrackOptions.__post_init__(self)  # refuses what it does not know
        if self.fps not in SUPPORTED_FPS:
            raise ConfigError(f"fps is {self.fps}.", f"Use one of {', '.join(map(str, SUPPORTED_FPS))}.")
        if (
            min(self.batch_size, self.contact_frames) < 1
            or self.max_seconds <= 0
            or not 0 <= self.max_missing <= 1
            or self.extra_margin < 0
        ):
            raise ConfigError("batch_size, max_seconds, max_missing or extra_margin is out of range.", "See --help.")
        for name, known in (("geometry", GEOMETRIES), ("detector", DETECTORS), ("parsing_mode", REGION_MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"There is no {name} {getattr(self, name)!r}.", f"Use one of {', '.join(known)}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the avatar depends on, for avatar.json: without paths, sizes of batches and limits."""
        left_out = {"batch_size", "max_seconds", *PLACES}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in left_out}


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
    cuts: list[int]  # frames that begin a new scene of the source
    tracked: float  # share of the frames whose motion was tracked
    video_copied: bool  # the source's own H.264 stream serves as frames; otherwise it was encoded again
    seconds: float
    contact_sheet: str
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


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
    parser: Parser | None = None,
) -> PrepareReport:
    """Prepare `source` as avatar `avatar_id` of `store`, whole or not at all; the same video gives the same bytes.

    Two passes, neither of which holds more than a few frames: find the face in every frame while storing them; then cut
    crops out of the frames *as stored*, and encode them. detector, parser: loaded as the options say when not given.
    Raises IdError, ExistsError, VideoError, NoFaceError, ConfigError, WeightsError.
    """
    started = time.perf_counter()
    options, progress = options or PrepareOptions(), progress or (lambda step, done, total: None)
    check_id(avatar_id, "avatar id")
    store.refuse_existing(avatar_id, force)
    video = open_source(Path(source), options.fps, options.max_seconds)
    detector = detector or open_detector(options.detector, options.detector_weights)
    if options.geometry == "musetalk" and parser is None and options.parser_weights is not None:
        parser = FaceParser.load(options.parser_weights, options.device)
    with store.write(avatar_id, force) as draft:
        survey = survey_video(
            video,
            detector,
            draft.folder / FRAMES,
            options.frames_crf,
            options.copy_video,
            lambda done, total: progress(FINDING, done, total),
        )
        size = (video.height, video.width)
        seen = survey.landmarks, survey.has_face, survey.boxes
        geometry = crop_geometry(options.geometry, *seen, options.fps, size, options, survey.motions, survey.cuts)
        track = geometry.track
        masks, mask_index = masks_of(landmarks_in_crop(track), options.fps, scenes=track.scenes)
        with (draft.folder / FRAMES).open("rb") as file:
            frames = VideoFrames(file, FRAMES, cache_bytes=GOP_BYTES)
            second = _Second(frames, geometry, survey, masks, mask_index, options, progress)
            _encode(second, draft, encode_reference, parser if geometry.boxes is not None else None)
        draft.write_geometry(track.transforms, track.landmarks, survey.has_face, masks, mask_index, geometry.boxes)
        facts = _facts(survey, track, video)
        if geometry.boxes is not None and parser is None:
            facts["warnings"].append("No face parser was given: the mask follows the landmarks, not MuseTalk's region.")
        draft.meta |= _meta(video, options, facts) | {"vae_fingerprint": vae_fingerprint}
    folder = store.folder(avatar_id)
    return PrepareReport(
        avatar_id=avatar_id,
        version=store.version(avatar_id),
        seconds=round(time.perf_counter() - started, 2),
        contact_sheet=str(folder / CONTACT),
        **facts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Second:
    """What the second pass goes through, a slot a frame."""

    frames: VideoFrames
    geometry: CropGeometry
    survey: Survey
    masks: UInt8  # (u, 256, 256)
    mask_index: Int32  # (n,)
    options: PrepareOptions
    progress: Progress

    def contact_cell(self, k: int, region: UInt8 | None) -> UInt8:
        """Frame `k` on the contact sheet, with the mask that will be pasted."""
        mask, track = self.masks[self.mask_index[k]], self.geometry.track
        if region is not None:
            box = self.geometry.box(k)
            square = crop_box_of(box)
            whole = region_mask(region, box, square)
            inside = whole[box[1] - square[1] : box[3] - square[1], box[0] - square[0] : box[2] - square[0]]
            mask = cv2.resize(inside, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA)
        return contact_sheet.cell(
            self.frames[k], track.transforms[k], track.landmarks[k], mask, bool(self.survey.has_face[k]), k
        )

    def region(self, k: int, parser: Parser) -> UInt8:
        """What the parser says is pasted back in frame `k`, uint8 0/255 `(512, 512)`; nothing without a face."""
        if not self.survey.has_face[k]:
            return np.zeros((PARSE_PX, PARSE_PX), np.uint8)
        labels = parser.labels(crop_padded(self.frames[k], crop_box_of(self.geometry.box(k))))
        return paste_region(labels, self.options.parsing_mode, self.options.cheek_width)


def _encode(second: _Second, draft: Draft, encode_reference: EncodeReference, parser: Parser | None) -> None:
    """Second pass: latents of the crops of the stored frames, parsed regions, and the contact sheet."""
    n, step = len(second.mask_index), second.options.batch_size
    if len(second.frames) != n:
        raise CorruptError(f"{len(second.frames)} of {n} frames were stored.", "Prepare the avatar again.")
    latents = np.empty((n, 8, 32, 32), np.float16)
    shown, cells = set(contact_sheet.pick_frames(n, second.options.contact_frames)), []
    regions = RegionPacker()
    for start in range(0, n, step):
        batch = range(start, min(n, start + step))
        crops = np.empty((len(batch), CROP_PX, CROP_PX, 3), np.uint8)
        for k in batch:
            crops[k - start] = second.geometry.crop(second.frames[k], k)
            region = second.region(k, parser) if parser is not None else None
            if region is not None:
                regions.add(region)
            if k in shown:
                cells.append(second.contact_cell(k, region))
        latents[batch.start : batch.stop] = _to_float16(encode_reference(crops), len(batch))
        second.progress(ENCODING, batch.stop, n)
    draft.write_latents(latents)
    if parser is not None:
        draft.write_regions(regions.packed())
    write_png(draft.folder / CONTACT, contact_sheet.sheet(cells))


def _to_float16(latents: Any, n: int) -> Float16:
    """An array or a torch tensor `(n, 8, 32, 32)` as float16."""
    if hasattr(latents, "detach"):
        latents = latents.detach().float().cpu().numpy()
    array = np.asarray(latents)
    if array.shape != (n, 8, 32, 32):
        raise ConfigError(f"The VAE returns latents of shape {array.shape}, not {(n, 8, 32, 32)}.", "Check its folder.")
    return array.astype(np.float16)


def _meta(video: Source, options: PrepareOptions, facts: dict[str, Any]) -> dict[str, Any]:
    """What avatar.json says of the video and of how it was prepared."""
    return {
        "fps": options.fps,
        "width": video.width,
        "height": video.height,
        "frames": facts["frames"],
        "source": {"name": video.path.name, "sha256": video.sha256, "kind": video.kind, "fps": video.fps},
        "settings": options.settings,
        "facts": facts,
    }


def _facts(survey: Survey, track: CropTrack, source: Source) -> dict[str, Any]:
    """The report's numbers and warnings."""
    sizes, n, missing = survey.size_px[survey.has_face], len(survey.has_face), int((~survey.has_face).sum())
    face_px, crop_px = _spread(sizes), _spread(track.side_px)
    warnings = list(source.warnings)
    if missing:
        warnings.append(
            f"{missing} of {n} frames show no face, or a covered or averted one, and are played as they are."
        )
    cut_off = _cut_off(survey, source)
    if cut_off:
        warnings.append(f"The face reaches beyond the picture in {cut_off} frames: what lies there is made up.")
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
    if survey.cuts:
        warnings.append(f"The video is cut at frame {', '.join(map(str, survey.cuts))}: the head jumps there.")
    if not track.scale_locked:
        warnings.append("The face changes its size by more than 8 %: the crop follows it.")
    return {
        "frames": n,
        "frames_without_face": missing,
        "faces": survey.most_faces,
        "face_px": face_px,
        "crop_px": crop_px,
        "bbox_shift_range": shift_range(track.landmarks, survey.has_face),
        "cuts": survey.cuts,
        "tracked": round(track.tracked, 3),
        "video_copied": survey.copied,
        "warnings": warnings,
    }


def _cut_off(survey: Survey, source: Source) -> int:
    """In how many frames the face does not lie in the picture as a whole."""
    points = survey.landmarks[survey.has_face]
    inside = (points >= 0) & (points <= (source.width - 1, source.height - 1))
    return int((~inside.all(axis=(1, 2))).sum())


def _spread(values: npt.NDArray[np.float32]) -> tuple[int, int, int]:
    """(min, median, max), rounded."""
    return round(float(values.min())), round(float(np.median(values))), round(float(values.max()))
