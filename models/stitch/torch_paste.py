"""Pastes a batch of face crops into frames on any device of torch's: what `models.stitch.paste.paste` does one by one.

For tools that hold frames and faces on a GPU already (restoration, reports); the line itself pastes on the CPU. Both
agree within 2 grey levels. Torch is imported when it is called. Knows no avatars and no time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError
from models.geometry import apply, invert
from models.stitch.resample import CUTOFF, MOST_MINIFIED, STEPS, low_pass, scaled
from models.types import CROP_PX

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("feather",)
CUBIC = -0.75  # OpenCV's


def paste_batch(
    frames: Tensor, faces: Tensor, transforms: npt.NDArray[np.floating], masks: Tensor, mode: str = "feather"
) -> Tensor:
    """A copy of `frames` with the faces pasted back.

    frames: RGB uint8 `(n, h, w, 3)`. faces: RGB uint8 `(n, s, s, 3)`. transforms: `(n, 2, 3)` on the host, frame px →
    256 px crop. masks: uint8 `(n, 256, 256)`, or `(1, 256, 256)` for all. All tensors on one device. Raises ConfigError
    for a mode other than `feather`.
    """
    if mode not in MODES:
        raise ConfigError(f"There is no paste mode {mode!r} on tensors.", f"Use one of {', '.join(MODES)}.")
    assert faces.ndim == 4 and faces.shape[1] == faces.shape[2] and len(faces) == len(frames), (
        faces.shape,
        frames.shape,
    )
    out = frames.clone()
    masks = masks.expand(len(frames), -1, -1)
    for scale, rows in _by_scale(np.asarray(transforms, np.float64), faces.shape[1] / CROP_PX).items():
        _paste_some(
            out, _filtered(faces[rows], scale), scale > 0, np.asarray(transforms, np.float64)[rows], masks[rows], rows
        )
    return out


def _by_scale(transforms: npt.NDArray[np.float64], factor: float) -> dict[float, list[int]]:
    """Face px per frame px, rounded as the low-pass is chosen → which frames; 0 where none is needed."""
    groups: dict[float, list[int]] = {}
    for k, transform in enumerate(transforms):
        scale = factor * math.sqrt(abs(float(np.linalg.det(transform[:, :2]))))
        groups.setdefault(round(min(scale, MOST_MINIFIED), 2) if scale > CUTOFF else 0.0, []).append(k)
    return groups


def _filtered(faces: Tensor, scale: float) -> Tensor:
    """Faces uint8 `(n, s, s, 3)` → float32 `(n, 3, s, s)` with no detail finer than the frame can show."""
    import torch
    import torch.nn.functional as F

    planes = faces.permute(0, 3, 1, 2).float()
    if not scale:
        return planes
    taps = torch.from_numpy(low_pass(scale)).to(planes.device)
    half, n = len(taps) // 2, len(planes)
    flat = F.pad(planes.reshape(n * 3, 1, *planes.shape[2:]), (half, half, half, half), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
    return flat.reshape(planes.shape).round().clamp(0, 255)


def _paste_some(
    out: Tensor, planes: Tensor, fine: bool, transforms: npt.NDArray[np.float64], masks: Tensor, rows: list[int]
) -> None:
    """Paste faces `(m, 3, s, s)` into the frames `rows` of `out`. fine: by Lanczos, else by cubic interpolation."""
    import torch

    # 1. one size of region for all, each where its crop lies
    lefts, tops, width, height = _regions(transforms, out.shape[2], out.shape[1])
    if not width or not height:
        return
    device = out.device
    x = torch.from_numpy(lefts).to(device)[:, None] + torch.arange(width, device=device)  # (m, w)
    y = torch.from_numpy(tops).to(device)[:, None] + torch.arange(height, device=device)  # (m, h)
    onto_face = np.stack([scaled(t, planes.shape[3] / CROP_PX) for t in transforms])
    # 2. face and mask there
    over = _sampled(planes, *_places(onto_face, x, y), _lanczos if fine else _cubic)  # (m, 3, h, w)
    share = (_linear(masks.float(), *_places(transforms, x, y)).round() / 255)[..., None]  # (m, h, w, 1)
    # 3. weighed
    item = torch.tensor(rows, device=device)[:, None, None]
    under = out[item, y[:, :, None], x[:, None, :]].float()  # (m, h, w, 3)
    mixed = over.permute(0, 2, 3, 1) * share + under * (1 - share)
    out[item, y[:, :, None], x[:, None, :]] = mixed.round().clamp(0, 255).to(torch.uint8)


def _regions(transforms: npt.NDArray[np.float64], width: int, height: int) -> tuple[Any, Any, int, int]:
    """Left and top edges `(m,)` of regions of one width and height within the frame that hold every crop."""
    corners = np.array([[-1, -1], [CROP_PX, -1], [-1, CROP_PX], [CROP_PX, CROP_PX]], np.float64)
    places = np.stack([apply(invert(t), corners) for t in transforms])  # (m, 4, 2)
    size = np.array([width, height])
    low = np.clip(np.floor(places.min(1)), 0, size).astype(np.int64)
    high = np.clip(np.ceil(places.max(1)) + 1, 0, size).astype(np.int64)
    w, h = (int(extent) for extent in np.maximum(high - low, 0).max(0))
    return np.minimum(low[:, 0], width - w), np.minimum(low[:, 1], height - h), w, h


def _places(matrices: npt.NDArray[np.float64], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixels at columns `x` (m, w) and rows `y` (m, h) lie in the image, float64 `(m, h, w)` each."""
    import torch

    m = torch.from_numpy(matrices).to(x.device)[..., None, None]  # (m, 2, 3, 1, 1)
    across, down = (m[:, k, 0] * x[:, None, :] + (m[:, k, 1] * y[:, :, None] + m[:, k, 2]) for k in (0, 1))
    return across, down


def _lanczos(place: Tensor) -> tuple[Tensor, list[int]]:
    """Weights `(…, 8)` of the pixels −3 … 4 beside the one that a position `(…)`, from 0 to 1, lies behind."""
    import torch

    steps = list(range(-3, 5))
    d = place[..., None] - torch.tensor(steps, device=place.device)
    return torch.sinc(d) * torch.sinc(d / 4), steps


def _cubic(place: Tensor) -> tuple[Tensor, list[int]]:
    """As `_lanczos`, of the pixels −1 … 2 (Keys 1981)."""
    import torch

    steps = list(range(-1, 3))
    d = (place[..., None] - torch.tensor(steps, device=place.device)).abs()
    near, far = (CUBIC + 2) * d**3 - (CUBIC + 3) * d**2 + 1, CUBIC * (d**3 - 5 * d**2 + 8 * d - 4)
    return torch.where(d <= 1, near, far), steps


def _sampled(planes: Tensor, x: Tensor, y: Tensor, kernel_of: Callable[[Tensor], tuple[Tensor, list[int]]]) -> Tensor:
    """`(m, 3, s, s)` at `(m, h, w)`, positions to 1 / 32 px, borders repeated: uint8's range, rounded."""
    import torch

    side, count = planes.shape[3], len(planes)
    x, y = ((place * STEPS).round() / STEPS for place in (x, y))
    left, top = x.floor(), y.floor()
    weights = []
    for place, low in ((x, left), (y, top)):
        kernel, steps = kernel_of(place - low)  # (m, h, w, taps)
        weights.append((kernel / kernel.sum(-1, keepdim=True)).float())
    flat = planes.reshape(count, 3, -1)
    out = torch.zeros((count, 3, *x.shape[1:]), device=planes.device)
    columns = [(left.long() + step).clamp(0, side - 1) for step in steps]
    for j, down in enumerate(steps):
        row = (top.long() + down).clamp(0, side - 1) * side
        for i, column in enumerate(columns):
            index = (row + column).reshape(count, 1, -1).expand(-1, 3, -1)
            weight = (weights[1][..., j] * weights[0][..., i])[:, None]
            out += flat.gather(2, index).reshape(out.shape) * weight
    return out.round().clamp(0, 255)


def _linear(masks: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`(m, s, s)` at `(m, h, w)`, linear, nothing beyond the border."""
    import torch

    side, count = masks.shape[2], len(masks)
    flat, out = masks.reshape(count, -1), torch.zeros(x.shape, device=masks.device)
    left, top = x.floor(), y.floor()
    for j in (0, 1):
        for i in (0, 1):
            column, row = left.long() + i, top.long() + j
            inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
            index = (row.clamp(0, side - 1) * side + column.clamp(0, side - 1)).reshape(count, -1)
            weight = (1 - (x - left - i).abs()) * (1 - (y - top - j).abs()) * inside
            out += flat.gather(1, index).reshape(x.shape) * weight.float()
    return out
