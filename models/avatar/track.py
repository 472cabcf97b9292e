"""From landmarks of every frame to one smooth crop transform a frame. Knows no pictures and no files.

The crop is MuseTalk's box (musetalk/utils/preprocessing.py, get_landmark_and_bbox; extra_margin of v1.5's
scripts/inference.py), turned with the head. Its shape is measured once, on the face at rest; where it lies follows the
eyes, the bridge of the nose and the temples, which do not move with speech.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from models.avatar.warp import apply
from models.errors import ConfigError, NoFaceError
from models.types import CROP_PX, Float32

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

SHAPES = ("square", "box")
NOSE_UPPER, NOSE_HALF, NOSE_TIP = 28, 29, 30  # iBUG: the generated half of the face begins at 29
RIGID = (0, 1, 2, 14, 15, 16, 27, 28, 29, 30, 36, 39, 42, 45)  # iBUG points that speech, brows and blinks leave alone
RIGHT_EYE, LEFT_EYE = (36, 39), (42, 45)
ALIGN_ROUNDS = 4  # the mean shape has converged to 1e-6 px by then
REST_PERCENTILE = 25.0  # of the chin's height over the frames: a talking source has its mouth shut or nearly so by then
SMOOTH_S = 0.08  # standard deviation of the smoothing kernel: 1 px of landmark noise leaves less than 0.15 px
MAX_MISSING = 0.3  # share of frames that may lack a face
GAP_WEIGHT = 1e-3  # of a frame without a face, beside one with
LOCK_RANGE = 0.08  # a head that comes closer than this is followed in size, too


@dataclass(frozen=True, slots=True)
class TrackOptions:
    """How crops are laid.

    bbox_shift: px by which the box's middle moves down from landmark 29. extra_margin: px below the chin.
    shape: `square` keeps the face's proportions; `box` stretches MuseTalk's box, as its released weights know faces.
    scale_lock: one size for all frames, unless the head truly comes closer. smooth_s: the smoothing kernel's standard
    deviation. max_missing: share of frames that may lack a face. Raises ConfigError.
    """

    bbox_shift: int = 0
    extra_margin: int = 10
    shape: str = "square"
    scale_lock: bool = True
    smooth_s: float = SMOOTH_S
    max_missing: float = MAX_MISSING

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"There is no crop shape {self.shape!r}.", f"Use one of {', '.join(SHAPES)}.")


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """transforms: float32 `(n, 2, 3)`, frame px → crop px. landmarks: float32 `(n, 68, 2)` in frame px, interpolated
    where no face was found. side_px: float32 `(n,)`, the longer side of the crop in the frame. scale_locked: whether
    all frames have one size.
    """

    transforms: Float32
    landmarks: Float32
    side_px: Float32
    scale_locked: bool


def musetalk_box(
    landmarks68: npt.NDArray[Any],
    frame_height: int,
    bbox_shift: int = 0,
    extra_margin: int = 10,
    detected_box: tuple[float, float, float, float] | None = None,
) -> tuple[int, int, int, int]:
    """MuseTalk v1.5's face box `(x1, y1, x2, y2)` in whole frame px.

    Landmark 29, moved down by `bbox_shift`, is the middle; the lowest landmark is the lower edge, as much lies above,
    up to the frame's top; the sides are the outermost landmarks; `extra_margin` px are added below, up to the frame's
    edge (v1.0 adds none: give 0). Landmarks are cut to whole numbers first. As upstream, x2 may lie outside the frame.
    A box that is empty or starts left of the frame gives way to `detected_box`, the detector's own (without one, to the
    landmarks' bounds within the frame), with the same margin. Raises NoFaceError if nothing is left.
    """
    points = np.asarray(landmarks68).astype(np.int32)  # cut towards zero; a copy
    assert points.shape == (68, 2), points.shape
    points[NOSE_HALF, 1] += bbox_shift
    middle, lowest = int(points[NOSE_HALF, 1]), int(points[:, 1].max())
    x1, y1, x2, y2 = int(points[:, 0].min()), max(0, 2 * middle - lowest), int(points[:, 0].max()), lowest
    if y2 <= y1 or x2 <= x1 or x1 < 0:
        bounds = (*points.min(0), *points.max(0)) if detected_box is None else detected_box
        x1, y1, x2, y2 = (max(0, int(edge)) for edge in bounds)
        if y2 <= y1 or x2 <= x1:
            raise NoFaceError("The face lies outside the frame.", "Use a video that shows the whole face.")
    return x1, y1, x2, min(y2 + extra_margin, frame_height)


def shift_range(landmarks: Float32, has_face: Bool) -> tuple[int, int]:
    """The sensible range of bbox_shift in px, as MuseTalk prints it: -(29 → 30) to +(28 → 29), means over frames."""
    heights = landmarks[has_face].astype(np.int32)[:, (NOSE_UPPER, NOSE_HALF, NOSE_TIP), 1]
    return -int((heights[:, 2] - heights[:, 1]).mean()), int((heights[:, 1] - heights[:, 0]).mean())


def crop_transforms(
    landmarks: npt.NDArray[Any], has_face: Bool, fps: float, options: TrackOptions | None = None
) -> Track:
    """One smooth similarity transform a frame, sub-pixel and without lag, from landmarks `(n, 68, 2)` in frame px.

    Where `has_face` is False the landmarks are ignored and everything is interpolated. With `shape="box"` the transform
    also stretches. Raises NoFaceError when no frame, or too few, show a face.
    """
    options = options or TrackOptions()
    n, missing = len(landmarks), int((~has_face).sum())
    if missing == n:
        raise NoFaceError(
            f"No face was found in any of the {n} frames.", "Use a video that shows one face, from the front, well lit."
        )
    if missing > options.max_missing * n:
        raise NoFaceError(
            f"{missing} of {n} frames show no face; at most {options.max_missing:.0%} may.",
            "Cut the video to where the face is seen.",
        )
    # 1. poses of the head, and its shape at rest in upright head coordinates, measured in frame px
    points = landmarks.astype(np.float64)
    shape, poses = _align(points[has_face])
    middle, size = _rest_box(shape, options)
    # 2. smooth what is left of each frame: angle, size, and where the middle of the crop lies
    times = np.flatnonzero(has_face)
    centre = poses[:, 0] * complex(*middle) + poses[:, 1]
    seen = np.stack([np.unwrap(np.angle(poses[:, 0])), np.log(np.abs(poses[:, 0])), centre.real, centre.imag], 1)
    series = smooth(_interpolate(seen, times, n), np.where(has_face, 1.0, GAP_WEIGHT), options.smooth_s * fps)
    # 3. one size for all, unless the head comes closer
    locked = options.scale_lock and bool(np.ptp(series[:, 1]) < 2 * LOCK_RANGE)
    if locked:
        series[:, 1] = np.median(seen[:, 1])
    scale = np.exp(series[:, 1])
    transforms = _transforms(series[:, 0], series[:, 2:], size * scale[:, None])
    filled = _interpolate(points[has_face].reshape(-1, 136), times, n).reshape(n, 68, 2).astype(np.float32)
    return Track(transforms, filled, (scale * size.max()).astype(np.float32), locked)


def smooth(series: Float64, weights: Float64, sigma: float) -> Float64:
    """Smooth `(n, c)` over time without lag: at each frame the value of a parabola fitted to its neighbours.

    Neighbours weigh by `weights` (n,) and by a Gaussian of `sigma` frames. A parabola keeps motion that a moving
    average flattens, and ends need no padding. sigma 0 returns the series as it is. (Savitzky and Golay 1964, Cleveland
    1979.)
    """
    n = len(series)
    if sigma <= 0 or n < 2:
        return series.copy()
    reach = int(np.ceil(4 * sigma))
    out = np.empty_like(series)
    for k in range(n):
        low, high = max(0, k - reach), min(n, k + reach + 1)
        t = (np.arange(low, high) - k) / sigma
        weight = weights[low:high] * np.exp(-0.5 * t * t)
        powers = np.stack([np.ones_like(t), t, t * t], 1)[:, : min(3, high - low)]
        scaled = powers * np.sqrt(weight)[:, None]
        fit, *_ = np.linalg.lstsq(scaled, series[low:high] * np.sqrt(weight)[:, None], rcond=None)
        out[k] = fit[0]
    return out


def _align(points: Float64) -> tuple[Float64, npt.NDArray[np.complex128]]:
    """Generalised Procrustes over the rigid points of `(m, 68, 2)`, as complex numbers (turn and scale = one factor).

    Returns the head's mean shape `(68, 2)`, upright, in frame px of the median size, its chin at rest, and poses
    `(m, 2)`: frame = poses[:, 0] · shape + poses[:, 1].
    """
    z = points[..., 0] + 1j * points[..., 1]  # (m, 68)
    rigid = np.array(RIGID)
    shape = z[0] - z[0, rigid].mean()
    for _ in range(ALIGN_ROUNDS):
        poses = _poses(shape[rigid], z[:, rigid])
        upright = (z - poses[:, 1:]) / poses[:, :1]  # (m, 68)
        shape = np.median(upright.real, axis=0) + 1j * np.median(upright.imag, axis=0)
        across = shape[list(LEFT_EYE)].mean() - shape[list(RIGHT_EYE)].mean()
        shape = (shape - shape[rigid].mean()) / (across / abs(across)) * np.median(np.abs(poses[:, 0]))
    poses = _poses(shape[rigid], z[:, rigid])
    upright = (z - poses[:, 1:]) / poses[:, :1]
    lowest = np.percentile(upright.imag.max(axis=1), REST_PERCENTILE)
    at_rest = np.stack([shape.real, np.minimum(shape.imag, lowest)], 1)
    at_rest[shape.imag.argmax(), 1] = lowest
    return at_rest, poses


def _poses(shape: npt.NDArray[np.complex128], z: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """Least-squares similarity from `shape` (p,) to each of `z` (m, p): factor and shift, `(m, 2)`."""
    mean, means = shape.mean(), z.mean(1)
    factor = ((shape - mean).conj() * (z - means[:, None])).sum(1) / (np.abs(shape - mean) ** 2).sum()
    return np.stack([factor, means - factor * mean], 1)


def _rest_box(shape: Float64, options: TrackOptions) -> tuple[Float64, Float64]:
    """Middle and size (width, height) of the crop in upright head coordinates, by MuseTalk's rule, sub-pixel."""
    centre_y = shape[NOSE_HALF, 1] + options.bbox_shift
    lowest, left, right = shape[:, 1].max(), shape[:, 0].min(), shape[:, 0].max()
    if lowest - centre_y < 1 or right - left < 1:
        raise NoFaceError("bbox_shift moves the box off the face.", "Use a bbox_shift nearer to 0.")
    top, bottom = 2 * centre_y - lowest, lowest + options.extra_margin
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    size = np.array([right - left, bottom - top])
    return middle, size if options.shape == "box" else np.full(2, size.max())


def _transforms(angle: Float64, centre: Float64, size: Float64) -> Float32:
    """Crops with that centre `(n, 2)` and size `(n, 2)`, turned by `angle` (n,): `(n, 2, 3)`, frame px → crop px."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)  # (n, 2, 2)
    linear = turn * (CROP_PX / size)[:, :, None]
    shift = (CROP_PX - 1) / 2 - np.einsum("nij,nj->ni", linear, centre)
    return np.concatenate([linear, shift[:, :, None]], axis=2).astype(np.float32)


def _interpolate(seen: Float64, times: npt.NDArray[np.int64], n: int) -> Float64:
    """Rows `(m, c)` that were seen at `times` (m,) → rows `(n, c)`: linear between, constant before and after."""
    return np.stack([np.interp(np.arange(n), times, column) for column in seen.T], 1)


def in_crop(track: Track) -> Float32:
    """The landmarks in crop px, `(n, 68, 2)`."""
    return cast(Float32, apply(track.transforms, track.landmarks).astype(np.float32))
