"""Paints the face: shaded skin, eyes, brows, nose, ears and mouth."""

from __future__ import annotations

import torch
from torch import Tensor

from training.presenter_canvas import View, colour, sample
from training.presenter_shape import (
    CHEEK_X,
    EYE_X,
    MOUTH_Y,
    Params,
    brow_curve,
    bump,
    eye_curves,
    lips,
    outline,
    ridge,
    smooth,
    unjaw,
)

SLOPE_STEP = 0.012  # head units between the two heights from which a slope is computed


def _height(p: Params, x: Tensor, y: Tensor) -> Tensor:
    """Relief of the face at rest, in head units; x, y after `unjaw`."""
    ax = x.abs()
    rim = (outline(p, x, y) / 0.62 + 1).clamp(0, 1.05)  # 0 in the middle, 1 on the outline
    dome = 0.60 * (1.06 - rim**2.2).clamp(min=0.03).sqrt()
    nose = 0.078 * bump(x, y, 0, 0.17, 0.080, 0.23) + 0.088 * bump(x, y, 0, 0.350, 0.085, 0.085)
    wide = p["nose_wide"]
    wing = 0.030 * torch.exp(-(((ax - 0.084 * wide) / 0.046) ** 2) - ((y - 0.395) / 0.045) ** 2)
    eye = -0.062 * bump(ax, y, 0.235, -0.03, 0.13, 0.095) + 0.045 * bump(ax, y, EYE_X, 0.0, 0.115, 0.07)
    brow = 0.026 * bump(ax, y, 0.20, -0.17, 0.20, 0.07)
    cheek = 0.042 * bump(ax, y, 0.34, 0.24, 0.15, 0.13) - 0.016 * bump(ax, y, 0.40, 0.58, 0.11, 0.16)
    muzzle = 0.050 * bump(x, y, 0, 0.60, 0.20, 0.13) - 0.008 * bump(x, y, 0, 0.52, 0.034, 0.06)
    chin = 0.036 * bump(x, y, 0, 0.915, 0.14, 0.09) - 0.030 * bump(x, y, 0, 0.785, 0.15, 0.045)
    temple = -0.020 * bump(ax, y, 0.52, -0.25, 0.10, 0.16)
    return dome + p["nose_high"] * (nose + wing) + eye + brow + cheek + muzzle + chin + temple


def _normal(p: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    here = _height(p, x, y)
    slope_x = (_height(p, x + SLOPE_STEP, y) - here) / SLOPE_STEP
    slope_y = (_height(p, x, y + SLOPE_STEP) - here) / SLOPE_STEP
    nz = 1 / (1 + slope_x**2 + slope_y**2).sqrt()
    return -slope_x * nz, -slope_y * nz, nz


def key_light(p: Params) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of the key light, `(B, 1, 1)` each, of length 1."""
    x, y, z = p["light_x"], -0.50, 0.80
    length = (x * x + y * y + z * z).sqrt()
    return x / length, y / length, z / length


def _albedo(p: Params, x: Tensor, y: Tensor) -> Tensor:
    """Skin colour: redder cheeks, nose and ears, darker hollows. y after `unjaw`."""
    ax = x.abs()
    blood = 0.30 * bump(ax, y, 0.36, 0.30, 0.17, 0.14) + 0.30 * bump(x, y, 0, 0.36, 0.10, 0.09)
    blood = blood + 0.12 * bump(x, y, 0, 0.93, 0.16, 0.10)
    hollow = 0.10 * bump(ax, y, 0.235, 0.075, 0.10, 0.035)  # under the eyes
    hollow = hollow + 0.16 * bump(ax, y, 0.135, -0.03, 0.05, 0.08)  # where nose and socket meet
    fold = ((ax - 0.155) - 0.42 * (y - 0.43)) / 0.030  # from the wing of the nose to the corner of the mouth
    hollow = hollow + (0.09 + 0.13 * p["width"]) * torch.exp(-(fold**2) - ((y - 0.50) / 0.085) ** 2)
    hollow = hollow + 0.06 * torch.exp(-(((ax - 0.130 * p["nose_wide"]) / 0.024) ** 2) - ((y - 0.40) / 0.045) ** 2)
    hollow = hollow + 0.10 * bump(ax, y, 0.26, -0.115, 0.14, 0.03)  # under the brows
    shade = 1 - hollow
    return colour(
        p["skin_r"] * (1 - 0.01 * blood) * shade,
        p["skin_g"] * (1 - 0.19 * blood) * shade**1.25,
        p["skin_b"] * (1 - 0.18 * blood) * shade**1.3,
    )


def skin_maps(p: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The lit skin `(B, 3, h, w)` and the light on it `(B, h, w)` at face coordinates. Smooth, so it may be coarse."""
    rest_y = unjaw(p, y)
    nx, ny, nz = _normal(p, x, rest_y)
    lx, ly, lz = key_light(p)
    facing = nx * lx + ny * ly + nz * lz
    key = ((facing + 0.22) / 1.22).clamp(min=1e-3)  # light reaches around curved skin
    fill = (-nx * lx.sign() * 0.75 - 0.1 * ny + 0.6 * nz).clamp(min=0)
    rim = (1 - nz).clamp(min=0) ** 3 * (nx * -lx.sign()).clamp(min=0)
    ambient = p["ambient"] * (0.80 + 0.20 * nz - 0.16 * ny)
    curves = lips(p, x)
    below = torch.exp(-(((y - curves.outer_bottom - 0.030) / 0.034) ** 2)) * ridge(x, 0.15)
    side = -0.05 * lx.sign()
    under_nose = 0.18 * torch.exp(-(((x - side) / 0.11) ** 2) - ((rest_y - 0.478) / 0.038) ** 2)
    corner = 0.22 * torch.exp(-(((x.abs() - curves.half - 0.022) / 0.026) ** 2) - ((y - MOUTH_Y) / 0.030) ** 2)
    jaw_edge = smooth(-0.11, 0.03, outline(p, x, rest_y)) * smooth(0.35, 0.9, rest_y) * 0.30
    hold = (1 - 0.24 * below) * (1 - under_nose) * (1 - corner) * (1 - jaw_edge)
    albedo = _albedo(p, x, rest_y)
    # The edge of a shadow on skin is warm: red scatters further than blue.
    wrapped = torch.stack([key**0.82, key**1.08, key**1.20], 1) * _tint(x, 1.03, 1.0, 0.95)
    ambience = ambient[:, None] * _tint(x, 0.98, 0.98, 1.03) + 0.15 * fill[:, None] * _tint(x, 1.0, 0.97, 0.97)
    lit = albedo * (ambience + 0.80 * wrapped) + albedo.sqrt() * (0.04 * rim)[:, None]
    hx, hy, hz = lx, ly, lz + 1
    half = (hx * hx + hy * hy + hz * hz).sqrt()
    gloss = ((nx * hx + ny * hy + nz * hz) / half).clamp(min=1e-3)
    spot = 0.10 * bump(x, rest_y, 0, 0.340, 0.034, 0.030) + 0.035 * bump(x, rest_y, 0, 0.13, 0.034, 0.15)
    lit = lit * hold[:, None] + ((0.09 * gloss**30 + 0.05 * gloss**9) * hold + spot * key)[:, None] * _tint(
        x, 1.0, 0.97, 0.93
    )
    light = ambient + 0.80 * key + 0.12 * fill
    return lit, light


def _tint(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue], device=like.device).view(1, 3, 1, 1)


def paint_skin(view: View) -> None:
    """The skin of the face, without features."""
    p = view.params
    edge = outline(p, view.x, unjaw(p, view.y))
    grain = sample(view.textures["grain"], view.x * 0.55 + p["texture_seed"], view.y * 0.55)
    view.paint(view.skin * (1 + 0.012 * grain)[:, None], view.cover(edge, 0.014))


def paint_ear(view: View, sign: int) -> None:
    """One ear, behind the outline of the face."""
    p = view.params
    x = sign * view.head_x / p["face_wide"] - (CHEEK_X + 0.025)
    y = view.head_y - 0.13
    x = x - 0.03 * (-y / 0.2).clamp(-1, 1)  # the top stands out further
    shell = ((x / 0.072) ** 2 + (y / (0.20 - 0.05 * (y > 0))) ** 2 + 1e-6).sqrt() - 1
    inner = (((x + 0.008) / 0.042) ** 2 + ((y + 0.015) / 0.13) ** 2 + 1e-6).sqrt() - 1
    lit = 0.66 + 0.16 * sign * p["light_x"].sign()
    shade = lit * (
        1 - 0.36 * (0.5 - inner / 0.5).clamp(0, 1) - 0.25 * ridge(inner, 0.2) + 0.18 * ridge(shell + 0.18, 0.12)
    )
    shade = shade * (1 - 0.35 * smooth(0.0, -0.07, x))
    tint = view.rgb("skin") * torch.tensor([1.0, 0.86, 0.86], device=x.device).view(1, 3, 1, 1)
    view.paint(tint * shade[:, None], view.cover(shell * 0.07, 0.012))


def paint_nostrils(view: View) -> None:
    """Nostrils, the shade under the tip, and the rims of the wings."""
    wide = view.params["nose_wide"]
    ax, y = view.x.abs() / wide, view.y
    slant = y - 0.434 + 0.16 * (ax - 0.052)
    hole = torch.exp(-(((ax - 0.052 - 0.3 * (y - 0.434)) / 0.024) ** 2) - (slant / 0.0105) ** 2)
    around = ((ax - 0.082) / 0.037) ** 2 + ((y - 0.400) / 0.044) ** 2  # 1 on the rim of a wing
    rim = torch.exp(-((((around + 1e-6).sqrt() - 1) / 0.17) ** 2)) * smooth(0.090, 0.112, ax + 0.25 * (y - 0.40))
    under = torch.exp(-((ax / 0.030) ** 2) - ((y - 0.450) / 0.010) ** 2)
    tip = torch.exp(-(((ax - 0.030) / 0.030) ** 2) - ((y - 0.415 + 0.15 * ax) / 0.013) ** 2)
    dark = view.rgb("skin") * torch.tensor([0.30, 0.15, 0.13], device=y.device).view(1, 3, 1, 1)
    view.paint(dark, (0.85 * hole + 0.20 * rim + 0.20 * under + 0.13 * tip).clamp(0, 0.9))


def paint_eye(view: View, sign: int) -> None:
    """One eye: ball, iris, lids, lashes. sign: -1 for the one on the image's left."""
    p = view.params
    ex = sign * view.x - EYE_X
    t = view.y + p["eye_tilt"] * ex
    upper, lower, half = eye_curves(p, ex)
    u = ex / half
    q = (1 - u.clamp(-1, 1) ** 2).clamp(min=0)
    _paint_lids(view, t, upper, lower, u, q)
    opening = view.cover(torch.maximum(torch.maximum(upper - t, t - lower), ex.abs() - half), 0.006)
    _paint_ball(view, ex, t, upper, lower, u, opening, sign)
    _paint_lashes(view, ex, t, upper, lower, u)


def _paint_lids(view: View, t: Tensor, upper: Tensor, lower: Tensor, u: Tensor, q: Tensor) -> None:
    """Skin around the opening: lid, crease, tear line."""
    p, size = view.params, view.params["eye_size"]
    wide = (1 - (u / 1.22).clamp(-1, 1) ** 2).clamp(min=0)
    rest = -0.064 * size * (q + 1e-6) ** 0.62
    crease = torch.lerp(rest - 0.036 * wide**0.4 * size, rest - 0.022 * wide**0.4, 0.5 * p["blink"])
    crease = crease + 0.006 * u
    plate = smooth(-0.004, 0.012, t - crease) * smooth(0.006, -0.006, t - upper) * wide**0.5
    view.darken((0.10 + 0.16 * p["makeup"]) * plate * (1 - 0.35 * ridge(t - (crease + upper) / 2, 0.016)))
    line = torch.exp(-(((t - crease) / 0.0085) ** 2)) * wide**0.7
    fold = torch.exp(-(((t - crease + 0.016) / 0.020) ** 2)) * wide
    view.darken((0.42 - 0.22 * p["blink"]) * line + 0.08 * fold)
    bag = torch.exp(-(((t - lower - 0.040) / 0.011) ** 2)) * wide**1.5
    rim = torch.exp(-(((t - lower - 0.007) / 0.007) ** 2)) * wide**0.6
    view.darken(0.06 * bag + 0.14 * rim)


def _paint_ball(
    view: View, ex: Tensor, t: Tensor, upper: Tensor, lower: Tensor, u: Tensor, opening: Tensor, sign: int
) -> None:
    """White, iris, pupil, catch-light, within `opening`."""
    p = view.params
    lit = 0.46 + 0.50 * view.light
    under_lid = torch.exp(-(((t - upper) / 0.026).clamp(min=0) ** 2))
    shade = lit * (1 - 0.30 * u.clamp(-1, 1) ** 2) * (1 - 0.48 * under_lid)
    red = smooth(-0.70, -1.0, u)
    ball = colour(0.86 * shade, (0.825 - 0.26 * red) * shade, (0.81 - 0.26 * red) * shade)
    radius = 0.058 * p["eye_size"]
    ix, iy = ex - sign * 0.035 * p["gaze_x"], t + 0.010 - 0.022 * p["gaze_y"]
    r = (ix * ix + iy * iy + 1e-8).sqrt() / radius
    angle = torch.atan2(iy, ix)
    fibre = 0.5 + 0.5 * torch.sin(angle * 21 + 4 * torch.sin(angle * 5))
    glow = 0.75 + 0.9 * smooth(-0.4, 1.0, iy / radius) * (1 - 0.4 * r) + 0.28 * fibre * smooth(0.35, 0.6, r)
    ring = 1 - 0.72 * smooth(0.74, 0.98, r)
    iris = view.rgb("iris") * (1.35 * glow * ring * (0.35 + 0.65 * lit) * (1 - 0.45 * under_lid))[:, None]
    disc = view.cover((r - 1) * radius, 0.009)
    ball = torch.lerp(ball, iris, disc[:, None])
    ball = ball * (1 - 0.95 * view.cover((r - 0.43) * radius, 0.008))[:, None]
    gx, gy = sign * ix + 0.020 * -p["light_x"].sign() * -1 * -1, iy + 0.021
    catch = view.cover((gx * gx + gy * gy + 1e-8).sqrt() - 0.0125, 0.008)
    second = torch.exp(-(((gx + 0.040 * p["light_x"].sign()) / 0.012) ** 2) - ((gy - 0.042) / 0.012) ** 2)
    ball = ball + (0.90 * catch + 0.14 * second)[:, None] * smooth(-0.002, 0.01, t - upper)[:, None]
    wet = torch.exp(-(((t - lower + 0.003) / 0.0045) ** 2)) * (1 - 0.6 * u.clamp(-1, 1).abs())
    ball = ball + 0.10 * wet[:, None]
    view.paint(ball, opening)


def _paint_lashes(view: View, ex: Tensor, t: Tensor, upper: Tensor, lower: Tensor, u: Tensor) -> None:
    """The dark lines of both lids; the upper one ends in a small wing."""
    p = view.params
    outer = smooth(-0.9, 1.0, u)
    reach = smooth(-1.04, -0.80, u) * smooth(1.14, 0.95, u)
    fringe = (torch.sin(ex * 260 + 60 * t) * 0.5 + 0.5) ** 2
    thick = (0.0100 + 0.0080 * outer) * (0.7 + 0.5 * p["makeup"]) + 0.004 * fringe * outer * p["makeup"]
    above = (t - upper + 0.10 * (ex - 0.100).clamp(min=0)) + thick * 0.35
    line = (1.25 - above.abs() / thick).clamp(0, 1) * reach
    view.paint((0.045, 0.028, 0.025), line * (0.80 + 0.18 * p["makeup"]))
    below = torch.exp(-(((t - lower - 0.001) / 0.0050) ** 2)) * smooth(-0.9, 0.3, u) * smooth(1.06, 0.9, u)
    view.paint((0.11, 0.06, 0.05), below * (0.30 + 0.25 * p["makeup"]))


def paint_brow(view: View, sign: int) -> None:
    """One eyebrow, of slanted hairs."""
    p = view.params
    ex = sign * view.x - EYE_X
    across = view.y - brow_curve(p, ex)
    grow = smooth(-0.175, -0.10, ex) * smooth(0.205, 0.09, ex)
    thick = 0.0235 * p["brow_thick"] * (1.0 - 0.62 * smooth(0.0, 0.20, ex)) * (0.55 + 0.45 * smooth(-0.17, -0.06, ex))
    hairs = sample(view.textures["strand"], ex * 0.7 + across * 0.8 + p["texture_seed"], across * 0.2)
    body = (1.30 - (across.abs() / thick) * (1 + 0.10 * hairs)).clamp(0, 1)
    alpha = (body * grow * (0.82 + 0.10 * hairs)).clamp(0, 0.9)
    dark = view.rgb("hair").clamp(max=0.34) * 0.72 + 0.012
    view.paint(dark * (0.6 + 0.5 * view.light)[:, None], alpha)


def paint_mouth(view: View) -> None:
    """Lips, and teeth, tongue and cavity between them."""
    p, x, y = view.params, view.x, view.y
    curves = lips(p, x)
    ax = x.abs()
    end = ax - curves.half - 0.018
    upper_at = ((y - curves.outer_top) / (curves.inner_top - curves.outer_top + 1e-4)).clamp(0, 1)
    lower_at = ((y - curves.inner_bottom) / (curves.outer_bottom - curves.inner_bottom + 1e-4)).clamp(0, 1)
    lines = sample(view.textures["strand"], x * 0.22 + p["texture_seed"], y * 0.3)
    light = 0.22 + 0.80 * view.light
    upper = torch.maximum(torch.maximum(curves.outer_top - y, y - curves.inner_top - 0.003), end)
    lower = torch.maximum(torch.maximum(curves.inner_bottom - 0.003 - y, y - curves.outer_bottom), end)
    tone = view.rgb("lip") * (1 + 0.03 * lines)[:, None]
    upper_shade = light * (0.80 + 0.10 * torch.sin(3.14 * upper_at) - 0.26 * upper_at**4)
    lower_shade = light * (
        0.87 + 0.20 * ridge(lower_at - 0.42, 0.30) - 0.14 * lower_at**3 - 0.25 * ridge(lower_at, 0.12)
    )
    shine = 0.11 * torch.exp(-(((lower_at - 0.36) / 0.15) ** 2)) * ridge(x - 0.25 * p["light_x"] * 0.2, 0.085)
    shine = shine * (1 + 0.5 * lines).clamp(min=0)
    view.paint(tone * upper_shade[:, None], view.cover(upper, 0.016) * 0.94)
    view.paint(tone * lower_shade[:, None] + (shine * view.light)[:, None], view.cover(lower, 0.016) * 0.94)
    edge = torch.maximum(torch.maximum(curves.inner_top - y, y - curves.inner_bottom), ax - curves.half)
    gap = curves.inner_bottom - curves.inner_top
    inside = view.cover(edge + 0.8 * view.px) * (gap / (2.0 * view.px)).clamp(0, 1)
    view.paint(_mouth_inside(view, curves.inner_top, curves.inner_bottom, curves.half), inside)
    thin = 0.0085 - 0.0035 * smooth(0.4, 1.0, ax / curves.half)
    parting = torch.exp(-(((y - (curves.inner_top + curves.inner_bottom) / 2) / thin) ** 2))
    shut = (1 - gap / 0.022).clamp(0, 1) * view.cover(ax - curves.half - 0.012, 0.03)
    view.darken(0.62 * parting * shut)


def _mouth_inside(view: View, top: Tensor, bottom: Tensor, half: Tensor) -> Tensor:
    """Teeth, tongue and the dark cavity behind them: (B, 3, h, w)."""
    p, x, y = view.params, view.x, view.y
    ax = x.abs()
    gap = (bottom - top).clamp(min=1e-4)
    depth = ((y - top) / gap).clamp(0, 1)
    back = colour(0.150 - 0.07 * depth, 0.040 - 0.02 * depth, 0.042 - 0.02 * depth)
    bend = (1 - (x / (half * 1.02)) ** 2).clamp(min=0)
    # The tongue lies on the floor of the mouth, and rises with its parameter.
    rise = 0.030 + 0.075 * p["tongue"] + 0.05 * p["jaw"]
    tongue = ((x / (half * 0.70)) ** 2 + ((y - bottom) / rise) ** 2 + 1e-6).sqrt() - 1
    groove = 1 - 0.22 * ridge(x, 0.020)
    flesh = colour(0.60 * groove, 0.235 * groove, 0.235 * groove)
    flesh = flesh * (0.50 + 0.55 * smooth(0.0, -0.7, tongue) * bend)[:, None]
    inside = torch.lerp(back, flesh, (view.cover(tongue * 0.05, 0.014) * (0.35 + 0.65 * p["tongue"]))[:, None])
    # Each tooth is rounded at its lower corners; teeth turn away and darken towards the corners of the mouth.
    wide = 0.047 - 0.010 * smooth(0.02, 0.2, ax)
    tooth = torch.frac(x / wide + 100.5) - 0.5
    tooth = torch.where(ax < wide * 0.0, tooth, torch.frac(ax / wide) - 0.5)
    joint = torch.exp(-(((tooth.abs() - 0.5) / 0.075) ** 2))
    ivory = bend**0.6 * (0.52 + 0.48 * smooth(0.0, 0.020, y - top)) * (1 - 0.20 * joint) * (0.35 + 0.62 * view.light)
    length = (0.004 + 0.040 * p["teeth"]) * (0.55 + 0.45 * bend) - 0.006 * joint
    length = torch.lerp(length, 0.05 + 0 * length, p["tuck"])
    upper = view.cover(torch.maximum(y - top - length, ax - half * 0.92), 0.007)
    inside = torch.lerp(inside, colour(0.88 * ivory, 0.845 * ivory, 0.775 * ivory), upper[:, None])
    lower_edge = bottom - (0.010 + 0.016 * p["teeth"] * p["jaw"] + 0.010 * p["width"]) * (1 - p["tuck"])
    ivory = 0.60 * bend * (1 - 0.20 * joint) * (0.35 + 0.62 * view.light)
    lower = (
        view.cover(torch.maximum(lower_edge - y, ax - half * 0.75), 0.007) * (p["jaw"] * 2.5).clamp(max=1) * p["teeth"]
    )
    return torch.lerp(inside, colour(0.84 * ivory, 0.80 * ivory, 0.72 * ivory), (lower * (1 - upper))[:, None])
