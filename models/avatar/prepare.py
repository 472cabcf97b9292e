"""Turns a video or a picture into a prepared avatar. The caller passes the VAE as a function that encodes crops."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar import contact_sheet
from models.avatar.crop_geometry import GEOMETRIES, CropGeometry, crop_geometry
from models.avatar.decoding import MeasureDecoding, choose_decoder
from models.avatar.detect import DETECTORS, open_detector
from models.avatar.face import FaceDetector
from models.avatar.packed_regions import RegionPacker
from models.avatar.parse import CHEEK_PX, PARSE_PX, REGION_MODES, FaceParser, masks_of, paste_region, region_mask
from models.avatar.source import AvatarSource, open_source
from models.avatar.store import CONTACT, FRAMES, AvatarStore, Draft, write_png
from models.avatar.survey import Survey, survey_video
from models.avatar.track import CropTrack, TrackOptions, landmarks_in_crop, shift_range
from models.errors import ConfigError, CorruptError
from models.geometry import crop_box_of, crop_padded
from models.media.frames import FRAMES_CRF, GOP_BYTES, VideoFrames
from models.runtime.gpu_memory import compute_in_parts
from models.runtime.ids import check_id
from models.runtime.prefetch import prefetched
from models.types import CROP_PX, SUPPORTED_FPS, Float16, Int32, UInt8

Progress = Callable[[str, int, int], None]  # step, done, total (0: unknown)
EncodeReference = Callable[[UInt8], Any]  # crops (n, 256, 256, 3) → latents (n, 8, 32, 32), array or tensor

SMALL_FACE_PX = 96  # below it, a mouth is less than about 30 px wide: too coarse
FINDING, ENCODING, MEASURING = "finding faces", "encoding faces", "measuring the decoder"
LOCATIONS = ("detector_weights", "parser_weights", "device")  # options that do not change the result


class Parser(Protocol):
    """What preparation needs from a face parser."""

    def labels(self, face_rgb: UInt8) -> npt.NDArray[np.int64]:
        """Return CelebAMask-HQ's classes `(512, 512)` for an RGB picture `(h, w, 3)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions(TrackOptions):
    """How an avatar is prepared. Adds to TrackOptions; uses the manual's names where there are any. Raises ConfigError.

    fps: 24, 25 or 30. max_seconds: a longer video is refused. batch_size: crops per VAE call. frames_crf: x264's
    quality of the stored frames. copy_video: keep the source's H.264 stream if it fits. contact_frames: number of
    frames on the contact sheet.

    geometry: `similarity`, `box` or `musetalk`, see models/avatar/crop_geometry.py. detector: `blazemesh` or `dwpose`.
    detector_weights: DWPose's ONNX file. parser_weights: BiSeNet's file, for geometry `musetalk`; without it, the mask
    follows the landmarks. parsing_mode, cheek_width: see `paste_region`. device: of the parser.

    MuseTalk v1.0's weights are trained on geometry `musetalk` with extra_margin 0 and parsing_mode `raw`; v1.5's with
    extra_margin 10 and `jaw`.
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
        TrackOptions.__post_init__(self)
        if self.fps not in SUPPORTED_FPS:
            raise ConfigError(f"fps is {self.fps}.", f"Use one of {', '.join(map(str, SUPPORTED_FPS))}.")
        if (
            min(self.batch_size, self.contact_frames) < 1
            or self.max_seconds <= 0
            or not 0 <= self.max_missing <= 1
            or self.extra_margin < 0
        ):
            raise ConfigError(
                f"batch_size {self.batch_size}, contact_frames {self.contact_frames}, max_seconds {self.max_seconds}, "
                f"max_missing {self.max_missing} or extra_margin {self.extra_margin} is out of range.",
                "Use at least 1 for batch_size and contact_frames, more than 0 for max_seconds, 0 to 1 for max_missing "
                "and at least 0 for extra_margin.",
            )
        for name, known in (("geometry", GEOMETRIES), ("detector", DETECTORS), ("parsing_mode", REGION_MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"Unknown {name} {getattr(self, name)!r}.", f"Use one of {', '.join(known)}.")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that change the result, for avatar.json: without paths, batch sizes and limits."""
        excluded = {"batch_size", "max_seconds", *LOCATIONS}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in excluded}


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """The result of a preparation.

    faces: most faces in one frame. face_px, crop_px: size of the face and side of the crop in frame px, as (min,
    median, max). cuts: frames that begin a new scene of the source. tracked: share of the frames whose motion was
    tracked. video_copied: the source's own H.264 stream is stored; otherwise it was encoded again.
    """

    avatar_id: str
    version: str
    frames: int
    frames_without_face: int
    faces: int
    face_px: tuple[int, int, int]
    crop_px: tuple[int, int, int]
    bbox_shift_range: tuple[int, int]
    cuts: list[int]
    tracked: float
    video_copied: bool
    decoder: str
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
    measure_decoding: MeasureDecoding | None = None,
) -> PrepareReport:
    """Prepare `source` as avatar `avatar_id` of `store`, completely or not at all. The same video gives the same bytes.

    Two passes, each with a few frames in memory: find the face in every frame while storing them; then cut crops out of
    the *stored* frames and encode them. encode_reference: crops `(n, 256, 256, 3)` → latents `(n, 8, 32, 32)`. force:
    replace an existing avatar. detector, parser: loaded by the options if None. measure_decoding: None for a tiny VAE,
    which needs no statistics to be cropped. Raises IdError, ExistsError, QuotaError, DiskFullError, VideoError,
    NoFaceError, ConfigError, WeightsError.
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

        def report(step: str, done: int, total: int) -> None:
            draft.check_quota()
            progress(step, done, total)

        survey = survey_video(
            video,
            detector,
            draft.folder / FRAMES,
            options.frames_crf,
            options.copy_video,
            lambda done, total: report(FINDING, done, total),
        )
        size = (video.height, video.width)
        faces = survey.landmarks, survey.has_face, survey.boxes
        geometry = crop_geometry(options.geometry, *faces, options.fps, size, options, survey.motions, survey.cuts)
        track = geometry.track
        masks, mask_index = masks_of(landmarks_in_crop(track), options.fps, scenes=track.scenes)
        with (draft.folder / FRAMES).open("rb") as file:
            frames = VideoFrames(file, FRAMES, cache_bytes=GOP_BYTES)
            encoding = _EncodingPass(frames, geometry, survey, masks, mask_index, options, report)
            latents = encoding.run(draft, encode_reference, parser if geometry.boxes is not None else None)
        if measure_decoding is not None and geometry.boxes is None:
            known = latents, masks, mask_index, survey.has_face, options.fps
            draft.write_decoding(measure_decoding(*known, lambda done, total: report(MEASURING, done, total)))
        draft.write_geometry(track.transforms, track.landmarks, survey.has_face, masks, mask_index, geometry.boxes)
        facts = _facts(survey, track, video)
        if geometry.boxes is not None and parser is None:
            facts["warnings"].append(
                "There is no face parser (parser_weights): the mask follows the landmarks, not MuseTalk's region."
            )
        draft.meta |= _meta(video, options, facts) | {"vae_fingerprint": vae_fingerprint}
    avatar, folder = store.load(avatar_id, frames=False), store.folder(avatar_id)
    return PrepareReport(
        avatar_id=avatar_id,
        version=avatar.version,
        decoder=choose_decoder("auto", avatar, tiny=measure_decoding is None)[1],
        seconds=round(time.perf_counter() - started, 2),
        contact_sheet=str(folder / CONTACT),
        **facts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _EncodingPass:
    """The second pass over n frames: latents of the crops, parsed regions, and the contact sheet."""

    frames: VideoFrames
    geometry: CropGeometry
    survey: Survey
    masks: UInt8  # (u, 256, 256)
    mask_index: Int32  # (n,)
    options: PrepareOptions
    progress: Progress

    def run(self, draft: Draft, encode_reference: EncodeReference, parser: Parser | None) -> Float16:
        n, step = len(self.mask_index), self.options.batch_size
        if len(self.frames) != n:
            raise CorruptError(f"Only {len(self.frames)} of {n} frames were stored.", "Prepare the avatar again.")
        latents = np.empty((n, 8, 32, 32), np.float16)
        shown, cells = set(contact_sheet.pick_frames(n, self.options.contact_frames)), []
        regions = RegionPacker()

        def encoded(part: UInt8) -> Float16:
            return _to_float16(encode_reference(part), len(part))

        def cut() -> Iterator[tuple[range, UInt8]]:
            for start in range(0, n, step):
                batch = range(start, min(n, start + step))
                crops = np.empty((len(batch), CROP_PX, CROP_PX, 3), np.uint8)
                for k in batch:
                    crops[k - start] = self.geometry.crop(self.frames[k], k)
                    region = self.region(k, parser) if parser is not None else None
                    if region is not None:
                        regions.add(region)
                    if k in shown:
                        cells.append(self.contact_cell(k, region))
                yield batch, crops

        with closing(prefetched(cut(), 1)) as batches:  # a thread cuts the next batch while this one is encoded
            for batch, crops in batches:
                latents[batch.start : batch.stop] = compute_in_parts(encoded, crops)
                self.progress(ENCODING, batch.stop, n)
        draft.write_latents(latents)
        if parser is not None:
            draft.write_regions(regions.packed())
        write_png(draft.folder / CONTACT, contact_sheet.sheet(cells))
        return latents

    def contact_cell(self, k: int, region: UInt8 | None) -> UInt8:
        """Draw frame `k` for the contact sheet, with its paste mask."""
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
        """Return the parsed paste region of frame `k`, uint8 0/255 `(512, 512)`; all 0 without a face."""
        if not self.survey.has_face[k]:
            return np.zeros((PARSE_PX, PARSE_PX), np.uint8)
        labels = parser.labels(crop_padded(self.frames[k], crop_box_of(self.geometry.box(k))))
        return paste_region(labels, self.options.parsing_mode, self.options.cheek_width)


def _to_float16(latents: Any, n: int) -> Float16:
    """An array or a torch tensor `(n, 8, 32, 32)` as float16."""
    if hasattr(latents, "detach"):
        latents = latents.detach().float().cpu().numpy()
    array = np.asarray(latents)
    if array.shape != (n, 8, 32, 32):
        raise ConfigError(
            f"The VAE returns latents of shape {array.shape}, not {(n, 8, 32, 32)}.",
            "Check vae_dir: it must be the folder of a Stable Diffusion 1 VAE, or of one with the same latents.",
        )
    return array.astype(np.float16)


def _meta(video: AvatarSource, options: PrepareOptions, facts: dict[str, Any]) -> dict[str, Any]:
    """The entries of avatar.json about the source and its preparation."""
    return {
        "fps": options.fps,
        "width": video.width,
        "height": video.height,
        "frames": facts["frames"],
        "source": {"name": video.path.name, "sha256": video.sha256, "kind": video.kind, "fps": video.fps},
        "settings": options.settings,
        "facts": facts,
    }


def _facts(survey: Survey, track: CropTrack, source: AvatarSource) -> dict[str, Any]:
    """The report's numbers and warnings."""
    sizes, n, missing = survey.size_px[survey.has_face], len(survey.has_face), int((~survey.has_face).sum())
    face_px, crop_px = _min_median_max(sizes), _min_median_max(track.side_px)
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
        "warnings": [*source.warnings, *_warnings(survey, track, source, face_px[1])],
    }


def _warnings(survey: Survey, track: CropTrack, source: AvatarSource, face_px: int) -> Iterator[str]:
    """Yield the warnings of the report. face_px: median size of the face."""
    n, missing = len(survey.has_face), int((~survey.has_face).sum())
    if missing:
        yield (
            f"{missing} of {n} frames show no face, or one that is covered or turned away. "
            "They are played unchanged, without lip sync."
        )
    cut_off = _cut_off(survey, source)
    if cut_off:
        yield f"In {cut_off} frames, part of the face is outside the picture; there, the picture's border is repeated."
    if survey.most_faces > 1:
        yield f"There are up to {survey.most_faces} faces in one frame; the largest face of the first frame is used."
    if face_px > CROP_PX:
        yield (
            f"The face is {face_px} px large, but faces are generated at {CROP_PX} px: its lower half loses detail. "
            "Use enhancement, or a smaller video."
        )
    if face_px < SMALL_FACE_PX:
        yield f"The face is only {face_px} px large: the mouth will be coarse. Use a closer shot."
    if source.fps and abs(source.fps - source.target_fps) > 0.01:
        yield (
            f"The video has {source.fps:.5g} frames per second, not {source.target_fps}. "
            "Frames were dropped or repeated."
        )
    if survey.cuts:
        yield f"The video has cuts at frame {', '.join(map(str, survey.cuts))}: the head jumps there."
    if not track.scale_locked:
        yield "The face's size changes by more than 8 %: the crop's size follows it."


def _cut_off(survey: Survey, source: AvatarSource) -> int:
    """Number of frames in which part of the face is outside the picture."""
    points = survey.landmarks[survey.has_face]
    inside = (points >= 0) & (points <= (source.width - 1, source.height - 1))
    return int((~inside.all(axis=(1, 2))).sum())


def _min_median_max(values: npt.NDArray[np.float32]) -> tuple[int, int, int]:
    """(min, median, max), rounded."""
    return round(float(values.min())), round(float(np.median(values))), round(float(values.max()))
