"""Paints the surroundings of the face: background room, hair, neck and clothes."""

from __future__ import annotations

import torch
from torch import Tensor

from training.presenter_canvas import View, sample
from training.presenter_face import key_light
from training.presenter_shape import Params, bump, outline, ridge, smooth, unjaw


def ground_map(p: Params, body_x: Tensor, body_y: Tensor, frame_x: Tensor, frame_y: Tensor) -> Tensor:
    """A room out of focus, fixed to the frame: `(B, 3, h, w)`; frame_x, frame_y: head units from its middle."""
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


def _crown(p: Params, x: Tensor, y: Tensor) -> Tensor:
    """Approximate distance to the outline of the hair above the temples."""
    across, up = (x / (0.735 * p["hair_volume"])).abs(), ((y + 0.20) / (0.93 * p["hair_volume"])).abs()
    return ((across**2.1 + up**2.1 + 1e-6) ** (1 / 2.1) - 1) * 0.74


def _curtain(p: Params, x: Tensor, y: Tensor) -> Tensor:
    """Approximate distance to the outline of long hair below the temples: it widens, then turns in at its end."""
    end = p["hair_end"]
    swell = 0.735 + 0.035 * smooth(-0.2, 0.55, y) - 0.17 * smooth(end - 0.42, end + 0.12, y) ** 1.3
    tip = end + 0.10 - 0.55 * (x.abs() - 0.52).clamp(min=0) ** 1.2
    return torch.maximum(x.abs() - swell * p["hair_volume"], y - tip)


def _long(p: Params, x: Tensor, y: Tensor) -> Tensor:
    """The silhouette of long hair."""
    return torch.where(y < -0.20, _crown(p, x, y), _curtain(p, x, y))


def paint_hair_back(view: View) -> None:
    """Hair behind head and neck; below the ears only for long hair."""
    p, x, y = view.params, view.head_x, view.head_y
    strand = _strands(view, x * 0.55 + 0.05 * torch.sin(2.2 * y), y * 0.22)
    short = _crown(p, x, y) + 0.12 + 0.9 * smooth(-0.2, 0.3, y)
    shape = torch.where(p["hair_long"] > 0.5, _long(p, x, y), short)
    shade = (0.42 - 0.14 * x * p["light_x"].sign()) * (1 + 0.18 * strand) * (0.45 + 0.55 * smooth(0.40, 0.75, x.abs()))
    view.paint(view.rgb("hair") * shade[:, None], view.cover(shape + 0.0015 * strand, 0.02))


def paint_neck(view: View) -> None:
    """Neck and the skin in the collar, with the chin's shadow."""
    p = view.params
    x = torch.lerp(view.head_x, view.body_x, smooth(0.75, 1.35, view.body_y))
    y = view.body_y
    half = 0.305 + 0.09 * smooth(0.95, 0.70, y) + 0.40 * (y - 1.10).clamp(min=0) ** 1.5
    lx, _, _ = key_light(p)
    turn = (x / 0.37).clamp(-1, 1)
    lit = (0.58 + 0.42 * (lx * turn + 0.86 * (1 - turn**2).clamp(min=0).sqrt())).clamp(min=0.2)
    chin = view.head_y - 0.8 * p["drop"] - 1.0 - 0.16 * (1 - (view.head_x / 0.45) ** 2)
    shadow = smooth(0.20, -0.04, chin)
    tendon = 0.06 * torch.exp(-(((x.abs() - 0.19 + 0.30 * (y - 1.05)) / 0.035) ** 2)) * smooth(1.08, 1.35, y)
    notch = 0.12 * bump(x, y, 0, 1.46, 0.06, 0.05) + 0.05 * ridge(x, 0.05) * smooth(1.25, 1.42, y)
    lit = lit * (1 - 0.50 * shadow) * (1 - notch) + tendon
    warm = torch.tensor([0.97, 0.92, 0.92], device=x.device).view(1, 3, 1, 1) ** (1 + 1.8 * shadow[:, None])
    view.paint(view.rgb("skin") * warm * lit[:, None], view.cover(x.abs() - half, 0.02))


def _shoulder_line(ax: Tensor) -> Tensor:
    """The y of the jacket's upper edge at |x|: collar, slope, rounded shoulder."""
    slope = 1.16 + 0.24 * smooth(0.24, 0.62, ax) + 0.17 * (ax - 0.40).clamp(min=0)
    return slope + 1.5 * (ax - 1.15).clamp(min=0) ** 1.9


def _lapel_edge(y: Tensor) -> Tensor:
    """Half the width of the jacket's opening at y."""
    return 0.40 - 0.575 * (y - 1.18)


def paint_clothes(view: View) -> None:
    """A jacket with lapels over an open shirt collar, in shoulder coordinates."""
    p, x, y = view.params, view.body_x, view.body_y
    ax = x.abs()
    side = x * p["light_x"].sign()
    weave = sample(view.textures["strand"], x * 0.8 + 0.6 * y, 0.7 * y)
    over = y - _shoulder_line(ax)
    fall = 0.60 + 0.22 * side + 0.34 * torch.exp(-(((over - 0.05) / 0.12) ** 2)) - 0.20 * smooth(0.0, 0.02, 0.02 - over)
    fall = fall - 0.30 * smooth(1.0, 1.6, ax) - 0.16 * torch.exp(-(((ax - 1.02 - 0.15 * (y - 1.6)) / 0.05) ** 2))
    fall = (fall + 0.018 * weave).clamp(min=0.15)
    _paint_shirt(view, x, y, ax)
    opening = _lapel_edge(y)
    view.darken(
        0.45 * torch.exp(-(((opening - ax) / 0.035) ** 2)) * view.cover(ax - opening) * smooth(-0.10, 0.06, over)
    )
    jacket = torch.maximum(-over, opening - ax)
    view.paint(view.rgb("cloth") * fall[:, None], view.cover(jacket, 0.008))
    # The lapel widens downwards to its notch, then runs in to the closing of the jacket.
    below = y - (1.50 + 0.30 * (ax - 0.40))
    wide = torch.where(below < 0, 0.17 + 0.0 * y, 0.27 - 0.42 * below)
    lapel = torch.maximum(torch.maximum(opening - ax, ax - opening - wide), 0.015 - over)
    shade = fall * (1.10 + 0.16 * ridge(ax - opening - 0.015, 0.030))
    drop = torch.exp(-((lapel.clamp(min=0) / 0.028) ** 2)) * view.cover(jacket)
    view.darken(0.38 * drop)
    view.paint(view.rgb("cloth") * shade[:, None], view.cover(lapel, 0.008))
    seam = torch.exp(-((below / 0.007) ** 2)) * view.cover(lapel, 0.02) * smooth(0.02, 0.08, ax - opening)
    view.darken(0.40 * seam)


def _paint_shirt(view: View, x: Tensor, y: Tensor, ax: Tensor) -> None:
    """Shirt front and two collar wings around an open neck."""
    p = view.params
    neckline = 0.275 - 0.52 * (y - 1.20)
    front = torch.maximum(torch.maximum(1.14 - y, neckline - ax), ax - 0.44)
    side = x * p["light_x"].sign()
    shade = 0.70 + 0.16 * side - 0.16 * smooth(0.10, 0.0, ax - neckline)
    placket = 0.22 * torch.exp(-(((ax - 0.045) / 0.006) ** 2)) + 0.30 * smooth(
        0.013, 0.009, (x**2 + (y - 1.80) ** 2).sqrt()
    )
    skin_shadow = torch.exp(-(((neckline - ax) / 0.045).clamp(min=0) ** 2)) * smooth(1.12, 1.2, y)
    view.darken(0.32 * skin_shadow * view.cover(ax - neckline))
    view.paint(view.rgb("shirt") * (shade - placket * (y > 1.72)).clamp(min=0.1)[:, None], view.cover(front, 0.01))
    # A wing: a strip along the neckline that ends in a point.
    outer = torch.maximum(ax - neckline - 0.135, neckline - 0.018 - ax)
    point = (y - 1.56) * 0.8 + 0.75 * (ax - neckline - 0.06).abs()
    wing = torch.maximum(torch.maximum(outer, point * 0.8), 1.105 + 0.22 * (ax - 0.27) - y)
    shadow = torch.exp(-(((wing - 0.004) / 0.030).clamp(min=0) ** 2)) * view.cover(front)
    view.darken(0.34 * shadow)
    lift = 0.86 + 0.16 * side - 0.30 * smooth(1.26, 1.10, y) + 0.06 * ridge(ax - neckline - 0.02, 0.03)
    view.paint(view.rgb("shirt") * lift.clamp(min=0.1)[:, None], view.cover(wing, 0.008))


def _opening(p: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The hair's edge around the face: a level (1 on the edge, more in the hair), and about the distance to it.

    The contours of the level fall to both sides of the parting, so strands along them look combed.
    """
    part = p["hair_part"]
    swell = 1 + 0.06 * smooth(-0.2, 0.55, y) - 0.23 * smooth(p["hair_end"] - 0.42, p["hair_end"] + 0.12, y) ** 1.3
    x = torch.where(p["hair_long"] > 0.5, x / swell.clamp(min=0.5), x)
    root = part * smooth(0.75, -0.30, y)  # both sides are equal for every parting
    reach = torch.where(x < root, 0.56 + root, 0.56 - root) + 0.03 * (1 - p["hair_long"])
    top, centre = -0.64 - p["hair_line"], 0.15
    u = (x - root).abs() / reach
    lift = torch.where(y < centre, (centre - y) / (centre - top), (y - centre) / 2.2).clamp(min=0)
    level = (u**1.9 + lift**1.9 + 1e-6) ** (1 / 1.9)
    return level, (level - 1) * 0.55


def paint_hair_front(view: View) -> None:
    """Hair over the forehead and beside the face, combed from the parting."""
    p, x, y = view.params, view.x, view.y
    strand, free = _comb(view)
    end = torch.maximum(_crown(p, x, y) + 0.10 * smooth(-0.40, 0.05, y), y - 0.06 - 0.02 * strand)
    shape = torch.where(p["hair_long"] > 0.5, _long(p, x, y), end)
    inside = torch.maximum(shape + 0.0015 * strand, -free - 0.004 * strand)
    shadow = smooth(0.10, 0.0, -free) * smooth(0.05, -0.02, outline(p, x, unjaw(p, y)))
    view.darken(0.30 * shadow * view.cover(shape))
    view.image.copy_(torch.lerp(view.image, _hair_colour(view, strand, free), view.cover(inside, 0.020)[:, None]))


def _comb(view: View) -> tuple[Tensor, Tensor]:
    """Strand noise that runs with the hair, and the distance to the hair's edge around the face."""
    p, x, y = view.params, view.x, view.y
    level, free = _opening(p, x, y)
    wave = 0.02 * torch.sin(5 * y + 3 * x)
    side = 0.37 * (x > p["hair_part"])  # each side of the parting has its own strands
    strand = _strands(view, level * 0.26 + wave * 0.3 + side, (y + x.abs()) * 0.10)
    calm = smooth(0.0, 0.09, (x - p["hair_part"]).abs())  # without this, the two sides would meet in a step
    return strand * torch.where(y < -0.3, calm, 1.0), free


def _hair_colour(view: View, strand: Tensor, free: Tensor) -> Tensor:
    """Shaded hair: a dome above, cylinders at the sides, two soft rings of light, shade near face and parting."""
    p, x, y = view.params, view.x, view.y
    lx, ly, lz = key_light(p)
    # Beside the face, the hair is a cylinder between the face opening and the outline.
    lock = smooth(-0.2, 0.3, y)
    nx = torch.lerp(x / 0.80, x.sign() * ((x.abs() - 0.64) / 0.14), lock).clamp(-0.95, 0.95)
    ny = ((y + 0.15) / 0.98).clamp(-0.98, 0.0) * (1 - lock)
    nz = (1 - nx * nx - ny * ny).clamp(min=0.03).sqrt()
    facing = (nx * lx + ny * ly + nz * lz).clamp(min=0)
    rise = y + 0.42 * (x - p["hair_part"] * 0.5) ** 2 + 0.040 * strand
    ring = torch.exp(-(((rise + 0.70) / 0.090) ** 2)) + 0.40 * torch.exp(-(((rise - 0.30) / 0.18) ** 2))
    sheen = ring * facing**1.3 * (0.70 + 0.5 * strand).clamp(min=0)
    parting = torch.exp(-(((x - p["hair_part"]) / 0.014) ** 2)) * smooth(-0.60, -0.66, y) * smooth(-1.14, -0.85, y)
    hollow = (1 - 0.34 * smooth(0.12, 0.0, free)) * (1 - 0.32 * parting)
    hollow = hollow * (1 - 0.30 * smooth(p["hair_end"] - 0.35, p["hair_end"] + 0.1, y))
    shade = (0.36 + 0.80 * facing) * (1 + 0.20 * strand) * hollow
    base = view.rgb("hair")
    return base * shade.clamp(min=0.08)[:, None] + (base.sqrt() * 0.26 + 0.02) * sheen[:, None]
