"""Computes one smooth crop transform per frame from the landmarks of all frames.

The crop is MuseTalk's box (musetalk/utils/preprocessing.py, get_landmark_and_bbox; extra_margin of v1.5's
scripts/inference.py), rotated with the head. Its shape is measured once, on the face at rest. Its position follows the
eyes, the bridge of the nose and the temples, which do not move with speech, and the measured motion of their skin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from models.avatar.cuts import scenes_of
from models.avatar.flow import Motion
from models.avatar.fuse import fused, tracked_share
from models.avatar.smoothing import (
    BETA,
    D_CUTOFF_HZ,
    MIN_CUTOFF_HZ,
    SMOOTH_S,
    Smoothing,
    smooth_scenes,
    white_noise,
)
from models.errors import ConfigError, NoFaceError
from models.geometry import apply, as_complex, fit_similarity
from models.types import CROP_PX, Float32

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

SHAPES = ("square", "box")
NOSE_UPPER, NOSE_HALF, NOSE_TIP = 28, 29, 30  # iBUG: the generated half of the face begins at 29
RIGID = (0, 1, 2, 14, 15, 16, 27, 28, 29, 30, 36, 39, 42, 45)  # iBUG points that speech, brows and blinks do not move
RIGHT_EYE, LEFT_EYE = (36, 39), (42, 45)
ALIGN_ROUNDS = 4  # enough for the mean shape to converge to 1e-6 px
REST_PERCENTILE = 25.0  # of the chin's position over the frames: there, a talking source's mouth is nearly closed
TRACKED_SMOOTH_S = 0.04  # instead of SMOOTH_S, if motion was tracked: little noise is left, and motion is kept
TRACKED = 0.8  # share of frames above which a video counts as tracked
MAX_MISSING = 0.3  # share of frames that may have no face
GAP_WEIGHT = 1e-3  # weight of a frame without a face; a frame with one has 1
LOCK_RANGE = 0.08  # relative size change up to which the crop keeps one size: a larger one is followed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions:
    """How crops are placed. Raises ConfigError.

    bbox_shift: px by which the box's centre moves down from landmark 29. extra_margin: px below the chin.
    shape: `square` keeps the face's proportions; `box` stretches MuseTalk's box, as its released weights expect.
    scale_lock_enabled: one size for all frames of a scene, unless the head comes closer: the median of the first
    scale_lock_warmup_frames, or of all frames (0). smoothing, min_cutoff, beta, d_cutoff: see Smoothing. smooth_s:
    standard deviation of `zero_phase`; None: TRACKED_SMOOTH_S if motion was tracked, otherwise SMOOTH_S.
    affine_tracking_enabled: fuse landmarks with tracked motion. subpixel_enabled: False rounds a crop's centre and size
    to whole px. max_missing: share of frames that may have no face.
    """

    bbox_shift: int = 0
    extra_margin: int = 10
    shape: str = "square"
    scale_lock_enabled: bool = True
    scale_lock_warmup_frames: int = 0
    smoothing: str = "zero_phase"
    smooth_s: float | None = None
    min_cutoff: float = MIN_CUTOFF_HZ
    beta: float = BETA
    d_cutoff: float = D_CUTOFF_HZ
    affine_tracking_enabled: bool = True
    subpixel_enabled: bool = True
    max_missing: float = MAX_MISSING

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"Unknown crop shape {self.shape!r}.", f"Use one of {', '.join(SHAPES)}.")
        if self.scale_lock_warmup_frames < 0:
            raise ConfigError(
                f"scale_lock_warmup_frames is {self.scale_lock_warmup_frames}.", "Use 0 for all frames, or more."
            )
        self.smoother(0.0)

    def smoother(self, tracked: float) -> Smoothing:
        """Return the smoothing for a video of which the share `tracked` of the frames was tracked."""
        sigma_s = self.smooth_s
        if sigma_s is None:
            sigma_s = TRACKED_SMOOTH_S if tracked >= TRACKED else SMOOTH_S
        return Smoothing(self.smoothing, sigma_s, self.min_cutoff, self.beta, self.d_cutoff)


@dataclass(frozen=True, slots=True, eq=False)
class CropTrack:
    """The crops of a video.

    transforms: float32 `(n, 2, 3)`, frame px → crop px. landmarks: float32 `(n, 68, 2)` in frame px, interpolated where
    no face was found. side_px: float32 `(n,)`, the longer side of the crop in the frame. scale_locked: whether all
    frames of each scene have one size. tracked: share of the frames whose motion was used. scenes: between cuts.
    """

    transforms: Float32
    landmarks: Float32
    side_px: Float32
    scale_locked: bool
    tracked: float
    scenes: tuple[slice, ...]


def musetalk_box(
    landmarks68: npt.NDArray[Any],
    frame_height: int,
    bbox_shift: int = 0,
    extra_margin: int = 10,
    detected_box: tuple[float, float, float, float] | None = None,
) -> tuple[int, int, int, int]:
    """Return MuseTalk v1.5's face box `(x1, y1, x2, y2)` in whole frame px.

    Landmark 29, moved down by `bbox_shift`, is the centre. The lowest landmark is the lower edge, and the upper edge is
    as far above the centre, but inside the frame. The sides are the outermost landmarks. `extra_margin` px are added
    below, up to the frame's edge (v1.0 adds none: use 0). Landmarks are truncated to integers first. As in MuseTalk, x2
    may lie outside the frame. A box that is empty or starts left of the frame is replaced by `detected_box` (the
    detector's; without one, the landmarks' bounds within the frame), with the same margin. Raises NoFaceError if that
    is empty, too.
    """
    points = np.asarray(landmarks68).astype(np.int32)  # truncated towards zero; a copy
    assert points.shape == (68, 2), points.shape
    points[NOSE_HALF, 1] += bbox_shift
    middle, lowest = int(points[NOSE_HALF, 1]), int(points[:, 1].max())
    x1, y1, x2, y2 = int(points[:, 0].min()), max(0, 2 * middle - lowest), int(points[:, 0].max()), lowest
    if y2 <= y1 or x2 <= x1 or x1 < 0:
        bounds = (*points.min(0), *points.max(0)) if detected_box is None else detected_box
        x1, y1, x2, y2 = (max(0, int(edge)) for edge in bounds)
        if y2 <= y1 or x2 <= x1:
            raise NoFaceError("The face is outside the frame.", "Use a video that shows the whole face.")
    return x1, y1, x2, min(y2 + extra_margin, frame_height)


def shift_range(landmarks: Float32, has_face: Bool) -> tuple[int, int]:
    """Return the useful range of bbox_shift in px, as MuseTalk prints it.

    From -(distance of landmarks 29 and 30) to +(distance of 28 and 29), means over the frames with a face.
    """
    heights = landmarks[has_face].astype(np.int32)[:, (NOSE_UPPER, NOSE_HALF, NOSE_TIP), 1]
    return -int((heights[:, 2] - heights[:, 1]).mean()), int((heights[:, 1] - heights[:, 0]).mean())


def crop_transforms(
    landmarks: npt.NDArray[Any],
    has_face: Bool,
    fps: float,
    options: TrackOptions | None = None,
    motions: Sequence[Motion | None] = (),
    cuts: Sequence[int] = (),
    upright: bool = False,
) -> CropTrack:
    """Compute one smooth sub-pixel similarity transform per frame from landmarks `(n, 68, 2)` in frame px.

    Where `has_face` is False, the landmarks are ignored and the transform is interpolated. motions: of FaceFlow, one
    per frame, or empty. cuts: frames that begin a scene; nothing is smoothed across them. upright: crops do not rotate
    with the head. With `shape="box"` the transform also stretches. Raises NoFaceError when no frame, or too few frames,
    show a face.
    """
    options = options or TrackOptions()
    n, scenes = len(landmarks), scenes_of(cuts, len(landmarks))
    _check_faces(has_face, options.max_missing)
    # 1. the head's poses, and its shape at rest in upright head coordinates (frame px)
    points, times = landmarks.astype(np.float64), np.flatnonzero(has_face)
    shape, poses = _align(points[has_face])
    middle, size = _rest_box(shape, options)
    # 2. per frame: angle, log of the scale, and the position of the crop's centre
    centre = poses[:, 0] * complex(*middle) + poses[:, 1]
    rows = np.stack([np.unwrap(np.angle(poses[:, 0])), np.log(np.abs(poses[:, 0])), centre.real, centre.imag], 1)
    seen, tracked = _interpolate(rows, times, n, scenes), 0.0
    if options.affine_tracking_enabled and len(motions):
        how, tracked = options.smoother(0.0), tracked_share(motions, has_face)
        seen = fused(seen, motions, has_face, scenes, how.causal)
        seen = _interpolate(seen[has_face], times, n, scenes)
    # 3. smooth, with all columns in px at the crop's edge; one size per scene, unless the head comes closer
    lever = np.array([1, 1, 0, 0]) * float(size.max() / 2 * np.median(np.abs(poses[:, 0]))) + [0, 0, 1, 1]
    weights, how = np.where(has_face, 1.0, GAP_WEIGHT), options.smoother(tracked)
    series = smooth_scenes(seen * lever, weights, scenes, fps, how, white_noise(seen * lever, scenes)) / lever
    locked = options.scale_lock_enabled and _lock_scale(series, seen, has_face, scenes, options)
    # 4. transforms
    angle, scale = series[:, 0] * (not upright), np.exp(series[:, 1])
    centres, sizes = series[:, 2:], size * scale[:, None]
    if not options.subpixel_enabled:
        centres, sizes = np.rint(centres), np.rint(sizes)
    filled = _interpolate(points[has_face].reshape(-1, 136), times, n, scenes).reshape(n, 68, 2).astype(np.float32)
    side = sizes.max(1).astype(np.float32)
    return CropTrack(_transforms(angle, centres, sizes), filled, side, locked, tracked, tuple(scenes))


def _check_faces(has_face: Bool, max_missing: float) -> None:
    n, missing = len(has_face), int((~has_face).sum())
    if missing == n:
        where = f" in any of the {n} frames" if n > 1 else ""
        remedy = "Use a video or a picture that shows one face, from the front, well lit."
        raise NoFaceError(f"No face was found{where}.", remedy)
    if missing > max_missing * n:
        raise NoFaceError(
            f"{missing} of {n} frames show no face; at most {max_missing:.0%} may.",
            "Cut the video to the part that shows the face.",
        )


def _lock_scale(series: Float64, seen: Float64, has_face: Bool, scenes: Sequence[slice], options: TrackOptions) -> bool:
    """Give each scene of `series` one size, unless its head comes closer. Returns whether all scenes have one."""
    all_locked = True
    for scene in scenes:
        if np.ptp(series[scene, 1]) >= 2 * LOCK_RANGE:
            all_locked = False
            continue
        sizes = seen[scene, 1][has_face[scene]] if has_face[scene].any() else seen[scene, 1]
        series[scene, 1] = np.median(sizes[: options.scale_lock_warmup_frames or None])
    return all_locked


def _align(points: Float64) -> tuple[Float64, npt.NDArray[np.complex128]]:
    """Generalised Procrustes analysis over the rigid points of `(m, 68, 2)`, as complex numbers.

    Returns the head's mean shape `(68, 2)`, upright, in frame px at the median size, with its chin at rest; and poses
    `(m, 2)`: frame = poses[:, 0] · shape + poses[:, 1].
    """
    z = as_complex(points)  # (m, 68)
    rigid = np.array(RIGID)
    shape = z[0] - z[0, rigid].mean()
    for _ in range(ALIGN_ROUNDS):
        poses = np.stack(fit_similarity(shape[rigid], z[:, rigid]), 1)
        upright = (z - poses[:, 1:]) / poses[:, :1]  # (m, 68)
        shape = np.median(upright.real, axis=0) + 1j * np.median(upright.imag, axis=0)
        across = shape[list(LEFT_EYE)].mean() - shape[list(RIGHT_EYE)].mean()
        shape = (shape - shape[rigid].mean()) / (across / abs(across)) * np.median(np.abs(poses[:, 0]))
    poses = np.stack(fit_similarity(shape[rigid], z[:, rigid]), 1)
    upright = (z - poses[:, 1:]) / poses[:, :1]
    lowest = np.percentile(upright.imag.max(axis=1), REST_PERCENTILE)
    at_rest = np.stack([shape.real, np.minimum(shape.imag, lowest)], 1)
    at_rest[shape.imag.argmax(), 1] = lowest
    return at_rest, poses


def _rest_box(shape: Float64, options: TrackOptions) -> tuple[Float64, Float64]:
    """Centre and size (width, height) of the crop in upright head coordinates, by MuseTalk's rule, sub-pixel."""
    centre_y = shape[NOSE_HALF, 1] + options.bbox_shift
    lowest, left, right = shape[:, 1].max(), shape[:, 0].min(), shape[:, 0].max()
    if lowest - centre_y < 1 or right - left < 1:
        raise NoFaceError(f"bbox_shift {options.bbox_shift} moves the box off the face.", "Use a value nearer to 0.")
    top, bottom = 2 * centre_y - lowest, lowest + options.extra_margin
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    size = np.array([right - left, bottom - top])
    return middle, size if options.shape == "box" else np.full(2, size.max())


def _transforms(angle: Float64, centre: Float64, size: Float64) -> Float32:
    """Transforms `(n, 2, 3)`, frame px → crop px, of crops with centre and size `(n, 2)`, rotated by `angle` (n,)."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)  # (n, 2, 2)
    linear = turn * (CROP_PX / size)[:, :, None]
    shift = (CROP_PX - 1) / 2 - np.einsum("nij,nj->ni", linear, centre)
    return np.concatenate([linear, shift[:, :, None]], axis=2).astype(np.float32)


def _interpolate(seen: Float64, times: npt.NDArray[np.int64], n: int, scenes: Sequence[slice]) -> Float64:
    """Rows `(m, c)` known at `times` (m,) → rows `(n, c)`: linear between them, constant to the ends of a scene."""
    out = np.empty((n, seen.shape[1]))
    for scene in scenes:
        here = (times >= scene.start) & (times < scene.stop)
        known = here if here.any() else np.ones(len(times), bool)  # a scene without a face: from its neighbours
        for column in range(seen.shape[1]):
            out[scene, column] = np.interp(np.arange(scene.start, scene.stop), times[known], seen[known, column])
    return out


def landmarks_in_crop(track: CropTrack) -> Float32:
    """Return the landmarks in crop px, `(n, 68, 2)`."""
    return cast(Float32, apply(track.transforms, track.landmarks).astype(np.float32))
