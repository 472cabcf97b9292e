"""The presenter's geometry: coordinates, outline, mouth curves, landmarks and the crop.

Head units: the origin is between the eyes, x to the image's right, y down, 1 from the eye line to the resting chin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.presenter_identity import Identity, Pose

Params = dict[str, Tensor]  # identity, pose and mouth as (B, 1, 1) columns

MOUTH = ("jaw", "width", "rounding", "teeth", "tongue", "close", "tuck")
REST_MOUTH = (0.0, 0.12, 0.05, 0.3, 0.0, 1.0, 0.0)

FRAME_PX = 512
UNIT_PX = 156.0  # px per head unit in a frame: the crop rule then cuts about 256 px
ORIGIN_PX = (255.5, 222.0)  # position in a frame of the point between the eyes, in pixel-centre coordinates
PIVOT_Y = 1.15  # the head rolls about the neck
CHIN_DROP = 0.125  # how far the chin falls at jaw 1
EYE_X = 0.275
MOUTH_Y = 0.635
CHEEK_Y = 0.08  # height at which the face is widest
CHEEK_X = 0.595
LANDMARK_NOSE = 29  # iBUG 68: half-way down the nose
CROP_MARGIN_PX = 10.0  # MuseTalk v1.5 adds this below the chin


def smooth(low: float, high: float, x: Tensor) -> Tensor:
    """Smoothstep: 0 below `low`, 1 above `high`."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def bump(x: Tensor, y: Tensor, cx: float, cy: float, sx: float, sy: float) -> Tensor:
    """A Gaussian of height 1 at (cx, cy)."""
    return torch.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2)


def ridge(x: Tensor, width: float) -> Tensor:
    """A Gaussian of height 1 at x = 0."""
    return torch.exp(-((x / width) ** 2))


def columns(identity: Identity, pose: Pose, mouth: Tensor) -> Params:
    """All parameters as `(B, 1, 1)` tensors, so that they broadcast over pixels. mouth: (B, 7)."""
    assert mouth.ndim == 2 and mouth.shape[1] == len(MOUTH), mouth.shape
    values = {**identity, **pose, **{name: mouth[:, i] for i, name in enumerate(MOUTH)}}
    params = {name: value.to(mouth).view(-1, 1, 1) for name, value in values.items()}
    params["open"] = 1 - params["close"]
    params["drop"] = CHIN_DROP * params["jaw"] * (1 - 0.7 * params["close"]) * (1 - 0.6 * params["tuck"])
    return params


def head_matrix(pose: Pose) -> Tensor:
    """Head units -> frame px, `(B, 2, 3)`: scale, then roll about the neck, then shift."""
    cos, sin = torch.cos(pose["roll"]) * pose["scale"], torch.sin(pose["roll"]) * pose["scale"]
    origin_x = pose["shift_x"] + sin * PIVOT_Y
    origin_y = pose["shift_y"] + PIVOT_Y - cos * PIVOT_Y
    rows = [cos, -sin, origin_x + ORIGIN_PX[0] / UNIT_PX, sin, cos, origin_y + ORIGIN_PX[1] / UNIT_PX]
    return torch.stack(rows, -1).view(-1, 2, 3) * UNIT_PX


def body_matrix(pose: Pose) -> Tensor:
    """Shoulder units -> frame px, `(B, 2, 3)`: the shoulders follow a third of the head's shift and the breath."""
    zero = torch.zeros_like(pose["roll"])
    scale = 1 + 0.5 * (pose["scale"] - 1)
    x = 0.35 * pose["shift_x"] + ORIGIN_PX[0] / UNIT_PX
    y = 0.35 * pose["shift_y"] - 0.03 * pose["breath"] + PIVOT_Y * (1 - scale) + ORIGIN_PX[1] / UNIT_PX
    return torch.stack([scale, zero, x, zero, scale, y], -1).view(-1, 2, 3) * UNIT_PX


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The `(B, 2, 3)` map that applies `inner`, then `outer`."""
    linear = outer[:, :, :2] @ inner
    return torch.cat([linear[:, :, :2], linear[:, :, 2:] + outer[:, :, 2:]], -1)


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of an affine `(B, 2, 3)` map."""
    (a, b, tx), (c, d, ty) = (row.unbind(-1) for row in matrix.unbind(1))
    det = a * d - b * c
    rows = [d, -b, b * ty - d * tx, -c, a, c * tx - a * ty]
    return (torch.stack(rows, -1) / det[:, None]).view(-1, 2, 3)


def apply(matrix: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Map points by a `(B, 2, 3)` matrix; x and y broadcast against `(B, 1, 1)`."""
    m = matrix[..., None, None]
    return m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2], m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]


def parallax(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement of the face by yaw and pitch at the rigid head point (x, y). Smooth everywhere."""
    depth = 0.55 * bump(x, y, 0, 0.15, 0.62, 0.85) + 0.14 * bump(x, y, 0, 0.30, 0.16, 0.20) - 0.25
    return params["yaw"] * depth, params["pitch"] * depth


def unjaw(params: Params, y: Tensor) -> Tensor:
    """Face y -> the y of the same skin when the jaw is at rest."""
    return y - params["drop"] * smooth(0.52, 0.97, y)


def outline(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Approximate signed distance to the face's outline in head units, negative inside. y after `unjaw`."""
    lower = ((y - CHEEK_Y) / (params["chin_long"] - CHEEK_Y)).clamp(min=0)
    upper = ((CHEEK_Y - y) / (1.02 + CHEEK_Y)).clamp(min=0)
    across = (x.abs() / (CHEEK_X * params["face_wide"])) ** 2.1
    return ((across + lower ** params["jaw_square"] + upper**2.5) ** 0.47 - 1) * 0.62


def half_width(params: Params, y: Tensor) -> Tensor:
    """Half the face's width at the resting height y, the zero of `outline`."""
    lower = ((y - CHEEK_Y) / (params["chin_long"] - CHEEK_Y)).clamp(min=0)
    upper = ((CHEEK_Y - y) / (1.02 + CHEEK_Y)).clamp(min=0)
    rest = (1 - lower ** params["jaw_square"] - upper**2.5).clamp(min=0)
    return CHEEK_X * params["face_wide"] * rest ** (1 / 2.1)


@dataclass(frozen=True)
class Lips:
    """The four curves of the mouth at some x: outer and inner edge of either lip, and its half width."""

    outer_top: Tensor
    inner_top: Tensor
    inner_bottom: Tensor
    outer_bottom: Tensor
    half: Tensor


def mouth_half_width(params: Params) -> Tensor:
    """Distance from the middle of the mouth to a corner of the inner lips."""
    p = params
    spread = 0.212 + 0.058 * p["width"] - 0.088 * p["rounding"] - 0.030 * p["jaw"] * p["open"]
    return spread * p["mouth_wide"]


def lips(params: Params, x: Tensor) -> Lips:
    """Lip curves at x. At `close` 1 both inner edges are the same line for every jaw opening."""
    p, half = params, mouth_half_width(params)
    opening = 0.190 * p["jaw"] * (1 - 0.85 * p["tuck"]) + 0.020 * p["rounding"] + 0.006 * p["tuck"]
    sink = 0.18 * opening * p["open"]  # the corners of the mouth follow the jaw slightly
    up = (0.14 * opening + 0.020 * p["tuck"]) * p["open"] + sink
    down = 0.86 * opening * p["open"] - sink
    u = (x / half).abs().clamp(max=1.35)
    inside = (1 - u * u).clamp(min=1e-4)
    line = (
        MOUTH_Y
        + sink
        + 0.3 * p["drop"] * p["close"]
        + 0.006 * ridge(x, 0.06)
        + (-0.019 - 0.012 * p["width"]) * (1 - 0.9 * p["rounding"]) * u * u
    )
    inner_top = line - up * inside ** (0.70 - 0.22 * p["rounding"])
    inner_bottom = line + down * inside ** (0.70 - 0.22 * p["rounding"])
    outer = (1 - (x / (half + 0.020)) ** 2).clamp(min=1e-4)
    full = p["lip_full"] * (1 + 0.22 * p["rounding"] - 0.16 * p["width"])
    upper = 0.047 * full * (1 - 0.15 * p["jaw"] * p["open"]) * (1 - 0.15 * p["close"])
    lower = 0.066 * full * (1 + 0.05 * p["jaw"] * p["open"]) * (1 - 0.45 * p["tuck"])
    bow = (0.010 * ridge(x.abs() - 0.048, 0.042) - 0.010 * ridge(x, 0.024)) * (1 - 0.5 * p["rounding"])
    return Lips(
        inner_top - upper * outer ** (0.62 - 0.17 * p["rounding"]) - bow,
        inner_top,
        inner_bottom,
        inner_bottom + lower * outer ** (0.55 - 0.10 * p["rounding"]),
        half,
    )


def eye_curves(params: Params, ex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Upper lid, lower lid and half width of an eye at `ex`, outwards from its centre; all measured along its tilt."""
    half = 0.132 * params["eye_size"]
    u = (ex / half).clamp(-1, 1)
    q = (1 - u * u).clamp(min=0)
    shut = 0.026 * params["eye_size"] * q**0.85
    upper = -0.062 * params["eye_size"] * (q + 1e-6) ** 0.62 * (1 - 0.16 * u)
    lower = 0.033 * params["eye_size"] * (q + 1e-6) ** 0.85 * (1 + 0.14 * u)
    blink = params["blink"]
    return torch.lerp(upper, shut, blink), torch.lerp(lower, shut, blink), half


def brow_curve(params: Params, ex: Tensor) -> Tensor:
    """The middle of an eyebrow at `ex`, outwards from the eye's centre."""
    arch = -0.022 * ridge(ex - 0.062, 0.12) + 1.4 * (ex - 0.09).clamp(min=0) ** 2 + 0.014 * ex
    return -0.183 - 0.030 * params["brow"] + arch


def _face_points(params: Params) -> tuple[Tensor, Tensor]:
    """The 68 points in face coordinates, x and y each `(B, 68, 1)`."""
    like = params["jaw"]
    xs: list[Tensor] = []
    ys: list[Tensor] = []

    def add(x: Tensor, y: Tensor) -> None:
        x, y = torch.broadcast_tensors(x, y)
        xs.append(x)
        ys.append(y)

    def row(*values: float) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1) + 0 * like

    side = row(-0.04, 0.12, 0.28, 0.44, 0.59, 0.73, 0.85, 0.945) * params["chin_long"]
    width, fallen = half_width(params, side), side + params["drop"] * smooth(0.40, 0.97, side)
    add(-width, fallen)
    add(0 * like, params["chin_long"] + params["drop"])
    add(width.flip(1), fallen.flip(1))
    brow = row(0.16, 0.10, 0.03, -0.05, -0.12)
    add(-(EYE_X + brow), brow_curve(params, brow))
    add(EYE_X + brow.flip(1), brow_curve(params, brow.flip(1)))
    add(row(0, 0, 0, 0), row(0.01, 0.125, 0.24, 0.355))
    add(row(-0.105, -0.055, 0, 0.055, 0.105) * params["nose_wide"], row(0.428, 0.442, 0.45, 0.442, 0.428))
    for sign in (-1, 1):
        _, _, half = eye_curves(params, 0 * like)
        at = row(1, 0.35, -0.35, -1, -0.35, 0.35)[:, [0, 1, 2, 3, 4, 5] if sign < 0 else [3, 2, 1, 0, 5, 4]] * half
        upper, lower, _ = eye_curves(params, at)
        lid = row(0, 1, 1, 0, 0, 0) * upper + row(0, 0, 0, 0, 1, 1) * lower
        add(sign * (EYE_X + at), lid - params["eye_tilt"] * at)
    outer = row(-1, -0.6, -0.22, 0, 0.22, 0.6, 1, 0.6, 0.25, 0, -0.25, -0.6) * (mouth_half_width(params) + 0.012)
    curves = lips(params, outer)
    corner = (curves.inner_top + curves.inner_bottom) / 2
    picks = row(0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0), row(0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
    add(outer, picks[0] * curves.outer_top + picks[1] * curves.outer_bottom + (1 - picks[0] - picks[1]) * corner)
    inner = row(-0.97, -0.4, 0, 0.4, 0.97, 0.4, 0, -0.4) * mouth_half_width(params)
    curves = lips(params, inner)
    top = row(0, 1, 1, 1, 0, 0, 0, 0) + 0.5 * row(1, 0, 0, 0, 1, 0, 0, 0)
    add(inner, top * curves.inner_top + (1 - top) * curves.inner_bottom)
    return torch.cat(xs, 1), torch.cat(ys, 1)


def landmarks(identity: Identity, pose: Pose, mouth: Tensor) -> Tensor:
    """The presenter's own 68 landmarks (iBUG order) in frame px, `(B, 68, 2)`, from its geometry, not from a detector.

    mouth: (B, 7).
    """
    params = columns(identity, pose, mouth)
    face_x, face_y = _face_points(params)
    x, y = face_x, face_y
    for _ in range(3):  # the pixel map is rigid -> face; its inverse converges in a few steps for small angles
        move_x, move_y = parallax(params, x, y)
        x, y = face_x + move_x, face_y + move_y
    x, y = apply(head_matrix(pose), x, y)
    return torch.cat([x, y], -1)


def face_crop_transform(identity: Identity, pose: Pose, size: int = 256, margin_px: float = CROP_MARGIN_PX) -> Tensor:
    """The similarity that cuts MuseTalk's box out of a frame: `(B, 2, 3)`, frame px -> crop px, pixel centres.

    MuseTalk's rule (musetalk/utils/preprocessing.py, get_landmark_and_bbox): landmark 29 in the middle, the lowest
    landmark at the bottom, the same height above, plus `margin_px` below. Here the box rotates with the head's roll and
    is square. It does not depend on the mouth.
    """
    rest = torch.tensor(REST_MOUTH, device=pose["roll"].device).expand(len(pose["roll"]), -1)
    points = landmarks(identity, pose, rest)
    cos, sin = torch.cos(pose["roll"]), torch.sin(pose["roll"])
    turned_x = points[..., 0] * cos[:, None] + points[..., 1] * sin[:, None]  # (B, 68), the head upright
    turned_y = points[..., 1] * cos[:, None] - points[..., 0] * sin[:, None]
    middle = turned_y[:, LANDMARK_NOSE]
    half = turned_y.amax(1) - middle
    top, bottom = middle - half, middle + half + margin_px
    left, right = turned_x.amin(1), turned_x.amax(1)
    side = torch.maximum(bottom - top, right - left)
    zoom = size / side
    shift_x = (size - 1) / 2 - zoom * (left + right) / 2
    shift_y = (size - 1) / 2 - zoom * (top + bottom) / 2
    return torch.stack([zoom * cos, zoom * sin, shift_x, -zoom * sin, zoom * cos, shift_y], -1).view(-1, 2, 3)


def unit_footprint(matrix: Tensor) -> Tensor:
    """Head units per pixel under a px -> unit map `(B, 2, 3)`: `(B, 1, 1)`."""
    area = matrix[:, 0, 0] * matrix[:, 1, 1] - matrix[:, 0, 1] * matrix[:, 1, 0]
    return area.abs().sqrt().view(-1, 1, 1)
