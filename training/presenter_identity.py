"""Identities and head poses of the presenter, as dicts of `(B,)` tensors."""

from __future__ import annotations

import torch
from torch import Tensor


class Identity(dict[str, Tensor]):
    """One appearance per row: each value is a float32 `(B,)` tensor. Keys as in `default_identity`."""


class Pose(dict[str, Tensor]):
    """One head pose per row: each value is a float32 `(B,)` tensor.

    roll, yaw, pitch in radians; shift_x, shift_y in head units (1 = from the eye line to the chin); scale is a factor;
    blink 0 open to 1 shut; brow, gaze_x, gaze_y about -1 to 1; breath 0 to 1 lifts the shoulders.
    """


# Shape, light and hair: name -> (default, lowest, highest). Lengths are factors unless a comment says otherwise.
RANGES: dict[str, tuple[float, float, float]] = {
    "face_wide": (1.0, 0.95, 1.06),
    "chin_long": (1.0, 0.97, 1.03),
    "jaw_square": (2.05, 1.9, 2.5),  # exponent of the lower face's superellipse: 2 is an oval
    "mouth_wide": (1.0, 0.9, 1.1),
    "lip_full": (1.0, 0.75, 1.25),
    "eye_size": (1.05, 0.93, 1.09),
    "eye_tilt": (0.05, 0.0, 0.1),  # slope of the line through the corners of an eye
    "nose_wide": (1.0, 0.85, 1.25),
    "nose_high": (1.0, 0.8, 1.15),
    "brow_thick": (1.0, 0.75, 1.4),
    "makeup": (0.55, 0.0, 0.8),  # weight of lashes and lid colour, 0 to 1
    "light_x": (-0.42, -0.75, 0.75),  # horizontal position of the key light, relative to its height
    "ambient": (0.37, 0.30, 0.48),
    "hair_part": (0.16, -0.25, 0.25),  # position of the parting, in head units
    "hair_line": (0.0, -0.05, 0.06),  # lower is a higher forehead, in head units
    "hair_long": (1.0, 0.0, 1.0),  # 0 ends above the ears, 1 falls beside the face to `hair_end`
    "hair_end": (1.02, 0.78, 1.22),  # where long hair ends, in head units below the eyes
    "hair_volume": (1.0, 0.92, 1.08),
    "texture_seed": (0.0, 0.0, 1.0),
}

_SKINS = ((0.88, 0.665, 0.565), (0.80, 0.575, 0.465), (0.65, 0.44, 0.325), (0.45, 0.285, 0.20), (0.29, 0.18, 0.13))
_HAIRS = (
    (0.030, 0.025, 0.026),
    (0.085, 0.052, 0.038),
    (0.170, 0.098, 0.062),
    (0.300, 0.135, 0.065),
    (0.500, 0.355, 0.190),
    (0.420, 0.410, 0.400),
)
_CLOTHES = ((0.085, 0.125, 0.215), (0.16, 0.17, 0.19), (0.25, 0.09, 0.10), (0.06, 0.22, 0.21), (0.40, 0.36, 0.30))
_SHIRTS = ((0.86, 0.87, 0.89), (0.70, 0.78, 0.88), (0.90, 0.86, 0.78), (0.20, 0.21, 0.24))
_GROUNDS = ((0.20, 0.27, 0.33), (0.36, 0.31, 0.26), (0.30, 0.34, 0.30), (0.42, 0.44, 0.47), (0.13, 0.15, 0.20))
_IRISES = ((0.20, 0.115, 0.06), (0.10, 0.06, 0.04), (0.20, 0.25, 0.15), (0.20, 0.29, 0.36), (0.30, 0.32, 0.33))
_DEFAULT_TONES = {"skin": 0.22, "hair": 0.36, "cloth": 0.0, "shirt": 0.0, "ground": 0.0, "iris": 0.0}
_PALETTES = {"skin": _SKINS, "hair": _HAIRS, "cloth": _CLOTHES, "shirt": _SHIRTS, "ground": _GROUNDS, "iris": _IRISES}


def _palette(anchors: tuple[tuple[float, float, float], ...], position: Tensor) -> Tensor:
    """Colour at `position` (B,) in [0, 1] along the anchors, linear between them: (B, 3)."""
    table = torch.tensor(anchors)
    place = position.clamp(0, 1) * (len(anchors) - 1)
    low = place.floor().long().clamp(max=len(anchors) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[:, None])


def _assemble(values: dict[str, Tensor], tones: dict[str, Tensor], lip_tint: Tensor, device: str) -> Identity:
    """Spread the palettes' colours over `name_r`, `name_g`, `name_b` and move all to `device`."""
    for name, anchors in _PALETTES.items():
        colour = _palette(anchors, tones[name])
        for channel, letter in enumerate("rgb"):
            values[f"{name}_{letter}"] = colour[:, channel]
    lip = torch.tensor((0.86, 0.555, 0.575))  # lips are redder skin
    for channel, letter in enumerate("rgb"):
        values[f"lip_{letter}"] = values[f"skin_{letter}"] * (lip[channel] + (0.05, -0.06, -0.03)[channel] * lip_tint)
    return Identity({name: value.float().to(device) for name, value in values.items()})


def default_identity(batch: int, device: str = "cpu") -> Identity:
    """The shipped presenter, repeated `batch` times."""
    values = {name: torch.full((batch,), default) for name, (default, _, _) in RANGES.items()}
    tones = {name: torch.full((batch,), tone) for name, tone in _DEFAULT_TONES.items()}
    return _assemble(values, tones, torch.full((batch,), 0.35), device)


def random_identities(batch: int, generator: torch.Generator, device: str = "cpu") -> Identity:
    """`batch` different people: skin from light to dark, shapes, hair, clothes, ground and light.

    generator: a CPU generator; equal states give equal people on every device.
    """

    def draw() -> Tensor:
        return torch.rand(batch, generator=generator)

    values = {name: low + (high - low) * draw() for name, (_, low, high) in RANGES.items()}
    values["hair_long"] = (draw() < 0.5).float()
    values["makeup"] = values["makeup"] * (0.35 + 0.65 * values["hair_long"])
    tones = {name: draw() for name in _PALETTES}
    tones["hair"] = tones["hair"] * (1 - 0.85 * tones["skin"])  # light hair occurs with light skin
    tones["iris"] = tones["iris"] * (1 - 0.8 * tones["skin"])
    return _assemble(values, tones, draw() * 1.4 - 0.4, device)


def rest_pose(batch: int, device: str = "cpu") -> Pose:
    """Upright, centred, eyes open, looking at the camera."""
    names = ("roll", "shift_x", "shift_y", "yaw", "pitch", "blink", "brow", "gaze_x", "gaze_y", "breath")
    pose = Pose({name: torch.zeros(batch, device=device) for name in names})
    pose["scale"] = torch.ones(batch, device=device)
    return pose


def random_poses(batch: int, generator: torch.Generator, device: str = "cpu", amount: float = 1.0) -> Pose:
    """Poses of a talking head, `amount` times as strong. One in eight is within a blink."""

    def normal(deviation: float) -> Tensor:
        return torch.randn(batch, generator=generator).clamp(-2, 2) * deviation * amount

    pose = rest_pose(batch)
    deviations = {"roll": 0.035, "shift_x": 0.03, "shift_y": 0.025, "yaw": 0.05, "pitch": 0.035}
    deviations |= {"brow": 0.25, "gaze_x": 0.25, "gaze_y": 0.15}
    for name, deviation in deviations.items():
        pose[name] = normal(deviation)
    pose["scale"] = 1 + normal(0.02)
    blinking = torch.rand(batch, generator=generator) < 0.125
    pose["blink"] = blinking.float() * torch.rand(batch, generator=generator)
    pose["breath"] = torch.rand(batch, generator=generator) * min(amount, 1.0)
    return Pose({name: value.to(device) for name, value in pose.items()})
