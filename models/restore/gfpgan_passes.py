"""What GFPGAN does between two convolutions, each as one pass over memory: a Triton kernel on CUDA, torch elsewhere.

Feature maps are `(n, c, h, w)` in channels_last, in the network's dtype; each pass computes in float32. LeakyReLU's
slope is 0.2, and resizing by two is bilinear, as in models/restore/gfpgan_net.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.restore.gfpgan_net import SLOPE

# Values per program of the kernels that take all channels of a pixel, and of the others; channels per program of those.
# The fastest on an H200 among 1024 to 8192 values, and 32 or 64 channels.
TILE, SMALL_TILE, ACROSS = 4096, 2048, 64


def first_features(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1 × 1 convolution of float32 RGB `(n, 3, h, w)`, and its activation. weight: `(c, 3)`."""
    if not x.is_cuda:
        return F.leaky_relu(F.conv2d(x.to(weight.dtype), weight[:, :, None, None], bias), SLOPE)
    n, (height, width), channels = len(x), x.shape[2:], len(weight)
    out = _map(x, n, channels, height, width, weight.dtype)
    pixels = TILE // channels
    _kernels().first[(height * width // pixels, n)](
        x.contiguous(), weight, bias, out, height * width, CHANNELS=channels, PIXELS=pixels
    )
    return out


def resized(y: Tensor, factor: float, bias: Tensor | None = None) -> Tensor:
    """`y`, or with a bias the activation of `y + bias`, resized by 2 or by 0.5."""
    if not y.is_cuda:
        value = y.float() if bias is None else F.leaky_relu(y.float() + bias.float()[:, None, None], SLOPE)
        return F.interpolate(value, scale_factor=factor, mode="bilinear", align_corners=False).to(y.dtype)
    n, channels, *sides = y.shape
    height, width = (int(side * factor) for side in sides)
    out = _map(y, n, channels, height, width)
    grid, sizes = _tiles(n, channels, height * width)
    _kernels().resize[grid](
        *(_packed(y), y if bias is None else bias, out, height, width, channels),
        UP=factor > 1,
        BIAS=bias is not None,
        **sizes,
    )
    return out


def joined(deep: Tensor, bias: Tensor, shallow: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The end of a ResBlock: the activation of `deep + bias`, plus `shallow`, and the sum of that and `added`.

    shallow: of `deep`'s size, or of half its side, which is enlarged.
    """
    up = shallow.shape[2] < deep.shape[2]
    if not deep.is_cuda:
        rest = resized(shallow, 2) if up else shallow
        value = (F.leaky_relu(deep.float() + bias.float()[:, None, None], SLOPE) + rest).to(deep.dtype)
        return value, None if added is None else value + added
    n, channels, height, width = deep.shape
    out = _map(deep, n, channels, height, width)
    total = None if added is None else torch.empty_like(out)
    grid, sizes = _tiles(n, channels, height * width)
    _kernels().join[grid](
        *(_packed(deep), bias, _packed(shallow), deep if added is None else _packed(added)),
        *(out, out if total is None else total, height, width, channels),
        UP=up,
        ADDED=added is not None,
        **sizes,
    )
    return out, total


def split_activation(y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The activation of `y + bias`, as one map for each half of the channels."""
    if not y.is_cuda:
        one, two = F.leaky_relu(y.float() + bias.float()[:, None, None], SLOPE).to(y.dtype).chunk(2, 1)
        return one, two
    n, channels, height, width = y.shape
    half = channels // 2
    one, two = (_map(y, n, half, height, width) for _ in range(2))
    grid, sizes = _tiles(n, half, height * width)
    _kernels().split[grid](_packed(y), bias, one, two, height * width, half, **sizes)
    return one, two


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Scales and shifts half of the channels: `(n, c / 2, h, w)`, and the bias `(c / 2,)` that each still lacks."""

    scale: Tensor
    scale_bias: Tensor
    shift: Tensor
    shift_bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Colours:
    """Features → RGB: float32 weights `(3, c)`, bias `(3,)`, and each face's scales of the features, `(n, c)`.

    below: RGB of half the side, which is enlarged and added.
    """

    weight: Tensor
    bias: Tensor
    scales: Tensor
    below: Tensor | None


def styled(
    y: Tensor,
    gain: Tensor,
    noise: Tensor,
    bias: Tensor,
    condition: Condition | None = None,
    colours: Colours | None = None,
    onto: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The end of a style convolution: the features times `onto`, and their colours, float32 `(n, 3, h, w)`.

    The features are the activation of `y · gain + noise + bias`, with the condition. gain, onto: float32 `(n, c)`, of
    the same strides as the scales of the colours. noise: float32 `(h, w)`. Without `onto` no features are returned.
    """
    if not y.is_cuda:
        return _styled(y, gain, noise, bias, condition, colours, onto)
    n, channels, height, width = y.shape
    out = None if onto is None else _map(y, n, channels, height, width)
    rgb = None if colours is None else torch.empty((n, 3, height, width), device=y.device)
    pixels = min(TILE // channels, height * width)
    shape = condition or Condition(y, y, y, y)
    paint = colours or Colours(gain, gain, gain, None)
    assert all(one is None or one.stride() == gain.stride() for one in (onto, paint.scales)), "rows differ in stride"
    _kernels().style[(height * width // pixels, n)](
        *(_packed(y), gain, noise, bias, shape.scale, shape.scale_bias, shape.shift, shape.shift_bias),
        *(paint.scales, paint.weight, paint.bias, gain if paint.below is None else paint.below),
        *(gain if onto is None else onto, y if out is None else out, gain if rgb is None else rgb),
        *(height, width, gain.stride(0)),
        CHANNELS=channels,
        PIXELS=pixels,
        CONDITION=condition is not None,
        COLOURS=colours is not None,
        BELOW=paint.below is not None,
        KEEP=onto is not None,
    )
    return out, rgb


def _styled(
    y: Tensor,
    gain: Tensor,
    noise: Tensor,
    bias: Tensor,
    condition: Condition | None,
    colours: Colours | None,
    onto: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    value = F.leaky_relu(y.float() * gain[:, :, None, None] + noise + bias.float()[:, None, None], SLOPE)
    if condition is not None:
        same, guided = value.chunk(2, 1)
        scale = condition.scale.float() + condition.scale_bias[:, None, None]
        value = torch.cat([same, guided * scale + condition.shift + condition.shift_bias[:, None, None]], 1)
    rgb = None
    if colours is not None:
        weights = colours.weight * colours.scales[:, None]  # (n, 3, c)
        rgb = torch.einsum("nchw,nkc->nkhw", value, weights) + colours.bias[:, None, None]
        rgb = rgb if colours.below is None else rgb + resized(colours.below, 2)
    return None if onto is None else (value * onto[:, :, None, None]).to(y.dtype), rgb


def _map(like: Tensor, n: int, channels: int, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    made = torch.empty((n, height, width, channels), dtype=dtype or like.dtype, device=like.device)
    return made.permute(0, 3, 1, 2)


def _packed(x: Tensor) -> Tensor:
    assert x.is_contiguous(memory_format=torch.channels_last), (x.shape, x.stride())
    return x


def _tiles(n: int, channels: int, count: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid of programs for maps of `count` pixels, and the size of each."""
    across = min(ACROSS, channels)
    pixels = min(SMALL_TILE // across, count)
    return (count // pixels, n, channels // across), {"PIXELS": pixels, "ACROSS": across}


@cache
def _kernels() -> Any:
    """Imported at the first use, because Triton comes only with torch for CUDA."""
    from models.restore import gfpgan_kernels

    return gfpgan_kernels
