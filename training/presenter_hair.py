"""Paints what frames the face: the room behind, hair, neck and clothes."""

from __future__ import annotations

import torch

from training.presenter_canvas import View, sample
from training.presenter_face import key_light
from training.presenter_shape import Params, bump, outline, ridge, smooth, unjaw

Tensor = torch.Tensor
HAIR_TOP = -1.13  # the hair's highest point in head units


def ground_map(p: Params, body_x: Tensor, body_y: Tensor, frame_x: Tensor, frame_y: Tensor) -> Tensor:
    """A room out of focus, fixed to the frame: `(B, 3, h, w)`; frame_x, frame_y in head units from the frame's middle."""
    base = torch.stack([p[f"ground_{c}"] for c in "rgb"], 1)
    seed = p["texture_seed"] * 3
    glow = 1.0 - 0.16 * frame_y - 0.10 * frame_x * p["light_x"].sign()
    glow = glow + 0.22 * torch.exp(-(((frame_x + 1.05 + 0.2 * seed) / 0.42) ** 2) - ((frame_y + 0.55) / 0.85) ** 2)
    glow = glow + 0.16 * torch.exp(-(((frame_x - 1.25 + 0.2 * seed) / 0.35) ** 2) - ((frame_y + 0.2) / 0.9) ** 2)
    panel = smooth(0.90, 1.05, frame_x + 0.1 * seed) - smooth(1.42, 1.57, frame_x + 0.1 * seed)
    glow = glow - 0.14 * panel - 0.07 * (frame_x**2 + frame_y**2)
    image = base * glow[:, None]
    warm = torch.tensor([0.16, 0.11, 0.055], device=glow.device).view(1, 3, 1, 1)
    lamp = torch.exp(-(((frame_x + 1.18) / 0.26) ** 2) - ((frame_y + 0.88) / 0.26) ** 2)
    lamp = lamp + 0.5 * torch.exp(-(((frame_x - 1.30) / 0.20) ** 2) - ((frame_y - 0.05) / 0.22) ** 2)
    return image + warm * lamp[:, None]


def _strands(view: View, across: Tensor, along: Tensor) -> Tensor:
    return sample(view.textures["strand"], across + view.params["texture_seed"], along)


def paint_hair_back(view: View) -> None:
    """Hair behind head and neck; only long hair has it below the ears."""
    p, x, y = view.params, view.head_x, view.head_y
    volume = p["hair_volume"]
    fall = smooth(-0.3, 0.9, y)
    half = (0.715 + 0.055 * torch.sin(3.0 * y + 0.6) * fall - 0.10 * smooth(0.85, 1.4, y)) * volume
    crown = ((x / (0.72 * volume)).abs() ** 2.2 + ((y + 0.22) / (0.90 * volume)).abs() ** 2.2 + 1e-6) ** (1 / 2.2) - 1
    sides = torch.maximum(x.abs() - half, torch.maximum(-0.22 - y, y - 1.32 + 0.35 * (x.abs() - 0.5)))
    long = torch.where(
        p["hair_long"] > 0.5, torch.minimum(crown * 0.7, sides), (crown + 0.06 + 0.9 * smooth(-0.2, 0.3, y)) * 0.7
    )
    strand = _strands(view, x * 0.55 + 0.10 * torch.sin(2.2 * y), y * 0.22)
    side = 0.62 - 0.25 * x * p["light_x"].sign() * -1 * -1
    shade = side * (0.50 + 0.55 * smooth(0.45, 0.80, x.abs())) * (1 + 0.20 * strand)
    shade = shade * (1 - 0.35 * smooth(0.2, 1.2, y) * smooth(0.75, 0.45, x.abs()))
    view.paint(view.rgb("hair") * shade[:, None], view.cover(long + 0.012 * strand, 0.03))


def paint_neck(view: View) -> None:
    """Neck and the skin in the collar, with the chin's shadow."""
    p = view.params
    blend = smooth(0.75, 1.35, view.body_y)
    x = torch.lerp(view.head_x, view.body_x, blend)
    y = view.body_y
    half = 0.335 + 0.10 * smooth(0.95, 0.70, y) + 0.35 * (y - 1.12).clamp(min=0) ** 1.5
    lx, _, _ = key_light(p)
    round_ = (x / 0.40).clamp(-1, 1)
    lit = (0.62 + 0.42 * (lx * round_ + 0.86 * (1 - round_**2).clamp(min=0).sqrt())).clamp(min=0.2)
    chin = view.head_y - p["drop"] * 0.8
    shadow = smooth(0.28, -0.02, chin - 1.02 - 0.10 * (1 - (view.head_x / 0.5) ** 2)) * smooth(
        0.62, 0.30, view.head_x.abs()
    )
    tendon = 0.07 * torch.exp(-(((x.abs() - 0.20 + 0.22 * (y - 1.0)) / 0.035) ** 2)) * smooth(1.05, 1.35, y)
    notch = 0.14 * bump(x, y, 0, 1.50, 0.06, 0.06) + 0.08 * ridge(x, 0.05) * smooth(1.25, 1.45, y)
    lit = lit * (1 - 0.52 * shadow) * (1 - notch) + tendon
    warm = torch.tensor([0.97, 0.93, 0.93], device=x.device).view(1, 3, 1, 1) ** (1 + 1.6 * shadow[:, None])
    view.paint(view.rgb("skin") * warm * lit[:, None], view.cover(x.abs() - half, 0.02))


def _shoulder_line(ax: Tensor) -> Tensor:
    """The y of the jacket's upper edge at |x|."""
    slope = 1.235 + 0.36 * smooth(0.25, 1.25, ax) + 0.06 * ax
    return slope + 1.6 * (ax - 1.24).clamp(min=0) ** 1.6


def paint_clothes(view: View) -> None:
    """A jacket with lapels over an open shirt collar, in shoulder coordinates."""
    p, x, y = view.params, view.body_x, view.body_y
    ax = x.abs()
    side = x * p["light_x"].sign()
    weave = sample(view.textures["grain"], x * 0.9, y * 0.9)
    fall = 0.62 + 0.30 * side + 0.30 * torch.exp(-(((y - _shoulder_line(ax) - 0.05) / 0.13) ** 2))
    fall = fall - 0.30 * smooth(0.95, 1.5, ax) + 0.10 * bump(ax, y, 0.72, 1.72, 0.16, 0.25)
    _paint_shirt(view, x, y, ax)
    opening = 0.37 - 0.60 * (y - 1.235)  # half width of the V between the lapels
    jacket = torch.maximum(_shoulder_line(ax) - y, opening - ax)
    fabric = view.rgb("cloth") * ((fall.clamp(min=0.12) + 0.035 * weave) * 1.1)[:, None]
    view.paint(fabric, view.cover(jacket, 0.008))
    # Lapel: a band beside the opening, its outer edge slanting out to a notch.
    outer = opening + 0.20 + 0.16 * smooth(1.66, 1.46, y) - 0.42 * (1.46 - y).clamp(min=0)
    lapel = torch.maximum(torch.maximum(opening - ax, ax - outer), _shoulder_line(ax) + 0.012 - y)
    sheen = (fall * 1.16 + 0.10 * ridge(ax - opening - 0.03, 0.035) + 0.03 * weave) * 1.1
    view.paint(view.rgb("cloth") * sheen.clamp(min=0.12)[:, None], view.cover(lapel, 0.008))
    seam = torch.exp(-(((ax - outer - 0.006) / 0.012) ** 2)) * smooth(1.30, 1.40, y)
    notch = (
        torch.exp(-(((y - 1.475 + 0.35 * (ax - opening - 0.2)) / 0.010) ** 2))
        * view.cover(lapel)
        * smooth(0.10, 0.16, ax - opening)
    )
    rim = torch.exp(-(((ax - opening + 0.004) / 0.012) ** 2)) * view.cover(_shoulder_line(ax) - y)
    view.darken(0.45 * seam + 0.40 * notch + 0.35 * rim)


def _paint_shirt(view: View, x: Tensor, y: Tensor, ax: Tensor) -> None:
    """Shirt front and two collar wings around an open neck."""
    p = view.params
    neckline = 0.27 - 0.50 * (y - 1.235).clamp(min=0)
    front = torch.maximum(1.16 - y, neckline - ax)
    front = torch.maximum(front, ax - 0.52)
    shade = 0.74 + 0.16 * x * p["light_x"].sign() - 0.22 * smooth(0.10, 0.0, ax - neckline) - 0.12 * smooth(1.7, 1.9, y)
    button = torch.exp(-((x / 0.008) ** 2)) * smooth(1.74, 1.76, y) * 0.25
    view.paint(view.rgb("shirt") * (shade - button).clamp(min=0.1)[:, None], view.cover(front, 0.01))
    wing = torch.maximum(ax - neckline - 0.17 + 0.30 * (y - 1.30), neckline - 0.022 - ax)
    tip = y - 1.58 + 0.9 * (ax - 0.22)
    wing = torch.maximum(torch.maximum(wing, tip), 1.10 + 0.12 * ax - y)
    lift = 0.90 + 0.16 * x * p["light_x"].sign() - 0.30 * smooth(1.28, 1.12, y)
    under = torch.exp(-(((wing - 0.012) / 0.022) ** 2)) * view.cover(front) * (wing > 0)
    view.darken(0.30 * under)
    view.paint(view.rgb("shirt") * lift.clamp(min=0.1)[:, None], view.cover(wing, 0.008))


def _opening(p: Params, x: Tensor, y: Tensor) -> Tensor:
    """About the distance to the edge of the hair around the face, negative where the face is free."""
    part = p["hair_part"]
    long = p["hair_long"]
    reach = torch.where(x < part, 0.545 + part, 0.545 - part) + 0.03 * (1 - long)
    top = -0.60 - p["hair_line"]
    centre = 0.20
    u = ((x - part).abs() / reach).clamp(max=1.6)
    lift = torch.where(y < centre, (centre - y) / (centre - top), (y - centre) / 2.4).clamp(min=0)
    free = (u**2.15 + lift**2.0 + 1e-6) ** 0.48 - 1
    return free * 0.52


def paint_hair_front(view: View) -> None:
    """Hair over the forehead and beside the face, combed from the parting."""
    p, x, y = view.params, view.x, view.y
    volume, part = p["hair_volume"], p["hair_part"]
    down = (y - HAIR_TOP).clamp(min=0)
    reach = 1.15 * torch.tanh(down / 1.15) + 0.03
    across = (x - part * (1 - smooth(-1.1, 0.2, y))) / reach.sqrt()
    strand = _strands(view, across * 0.50, down * 0.16)
    free = _opening(p, x, y) + 0.016 * strand * smooth(0.12, 0.0, y - 0.2)
    crown = ((x / (0.735 * volume)).abs() ** 2.2 + ((y + 0.22) / (0.91 * volume)).abs() ** 2.2 + 1e-6) ** (1 / 2.2) - 1
    lock = torch.maximum(x.abs() - (0.735 + 0.03 * torch.sin(3.0 * y + 0.6)) * volume, y - 1.22 - 0.25 * x.abs())
    short = torch.maximum(crown * 0.72, y - 0.02 - 0.05 * strand)
    shape = torch.where(p["hair_long"] > 0.5, torch.where(y < -0.22, crown * 0.72, lock), short)
    inside = torch.maximum(shape + 0.010 * strand, -free)
    shadow = smooth(0.085, 0.0, -free) * (free < 0) * smooth(0.05, -0.02, outline(p, x, unjaw(p, y)))
    view.darken(0.34 * shadow * view.cover(shape))
    view.image.copy_(torch.lerp(view.image, _hair_colour(view, strand, free, down), view.cover(inside, 0.022)[:, None]))


def _hair_colour(view: View, strand: Tensor, free: Tensor, down: Tensor) -> Tensor:
    """Shaded hair: a dome above, cylinders at the sides, two soft rings of light, shade near face and parting."""
    p, x, y = view.params, view.x, view.y
    lx, ly, lz = key_light(p)
    nx = (x / 0.76).clamp(-0.98, 0.98)
    ny = ((y + 0.15) / 0.98).clamp(-0.98, 0.0)
    nz = (1 - nx * nx - ny * ny).clamp(min=0.03).sqrt()
    facing = (nx * lx + ny * ly + nz * lz).clamp(min=0)
    rise = y + 0.42 * (x - p["hair_part"] * 0.5) ** 2 + 0.035 * strand
    ring = torch.exp(-(((rise + 0.66) / 0.085) ** 2)) + 0.45 * torch.exp(-(((rise + 0.18) / 0.14) ** 2))
    sheen = ring * facing**1.5 * (0.75 + 0.5 * strand).clamp(min=0)
    hollow = (
        1
        - 0.38 * smooth(0.10, 0.0, free)
        - 0.30 * torch.exp(-(((x - p["hair_part"]) / 0.022) ** 2)) * smooth(-0.55, -0.70, y)
    )
    shade = (0.40 + 0.85 * facing) * (1 + 0.24 * strand) * hollow * (1 - 0.30 * smooth(0.1, 1.1, y))
    base = view.rgb("hair")
    return base * shade.clamp(min=0.08)[:, None] + (base.sqrt() * 0.30 + 0.02) * sheen[:, None]
