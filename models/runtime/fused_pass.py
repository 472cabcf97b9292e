"""What a decoder does between two convolutions, as one pass over memory: a Triton kernel on CUDA, torch elsewhere.

Bias, residual, GroupNorm as a multiply-add, SiLU, the crop and the interleaving of an upsampling need no arithmetic to
speak of: their cost is the memory that they read and write. Feature maps are `(n, c, h, w)` in channels_last.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Affine = tuple[torch.Tensor, torch.Tensor]  # scale and shift, each float32 (n, c), of the same strides
Placed = tuple[torch.Tensor, int, int]  # a feature map, and the row and column in it where the result begins

TILE = 4096  # values per program of the kernels
SUMMED_TILES = 8  # tiles that one program of `_sums` adds up


def combine(
    y: Placed,
    shape: tuple[int, int],
    bias: torch.Tensor | None = None,
    residual: Placed | None = None,
    shuffled: bool = False,
    affine: Affine | None = None,
    silu: bool = True,
    keep: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return `value`, the window of `y + bias + residual`, and `activated`, `silu(value · scale + shift)`.

    shape: rows and columns of the window. bias: `(c,)`. shuffled: `y` has `4 c` channels, of `upsampling_kernel`, and
    the window lies in the map of twice its size. `value` is None if not `keep`, `activated` without `affine`.
    """
    channels = y[0].shape[1] // (4 if shuffled else 1)
    if _has_kernels(y[0], channels):
        return _combine_cuda(y, shape, channels, bias, residual, shuffled, affine, silu, keep)
    value = _cut((interleave(y[0]), *y[1:]) if shuffled else y, shape)
    if bias is not None:
        value = value + bias[:, None, None]
    if residual is not None:
        value = value + _cut(residual, shape)
    activated = None
    if affine is not None:
        scale, shift = (part[:, :, None, None] for part in affine)
        activated = (value.float() * scale + shift).to(value.dtype)
        activated = F.silu(activated) if silu else activated
    return value.contiguous(memory_format=torch.channels_last) if keep else None, activated


def measured_affine(norm: nn.GroupNorm, y: torch.Tensor, bias: torch.Tensor | None) -> Affine:
    """The multiply-add that a GroupNorm is for `y + bias`, from the statistics of that map itself."""
    if _has_kernels(y, norm.num_channels):
        return _measured_cuda(norm, y, bias)
    value = y.float() if bias is None else y.float() + bias.float()[:, None, None]
    variance, mean = torch.var_mean(value.reshape(len(y), norm.num_groups, -1), dim=2, correction=0)
    size = norm.num_channels // norm.num_groups
    factor, mean = ((part.repeat_interleave(size, dim=1)) for part in ((variance + norm.eps).rsqrt(), mean))
    scale = factor * norm.weight.float()
    return scale, norm.bias.float() - mean * scale


def upsampling_kernel(weight: torch.Tensor) -> torch.Tensor:
    """A 3×3 kernel `(c, k, 3, 3)` after nearest-neighbour upsampling by two, as one `(4 c, k, 2, 2)` before it.

    Of three neighbours in a row of the upsampled map, two are the same pixel, so their weights add up: four taps in
    place of nine. Called with padding 1, block p of the result holds rows 2p - 1 and 2p, see `interleave`.
    """
    wide = weight.float()

    def folded(kernel: torch.Tensor, dim: int) -> list[torch.Tensor]:
        a, b, c = kernel.unbind(dim)
        return [torch.stack(taps, dim) for taps in ((a + b, c), (a, b + c))]  # of rows 2p - 1, and of rows 2p

    phases = [phase for rows in folded(wide, 2) for phase in folded(rows, 3)]  # four (c, k, 2, 2)
    return torch.cat(phases).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def interleave(y: torch.Tensor) -> torch.Tensor:
    """The result of a convolution with `upsampling_kernel`, `(n, 4 c, h + 1, w + 1)`, as `(n, c, 2 h, 2 w)`."""
    n, channels, height, width = y.shape
    blocks = y.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, channels // 4)
    pixels = blocks.permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * height, 2 * width, channels // 4)
    return pixels[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


def _has_kernels(x: torch.Tensor, channels: int) -> bool:
    """Whether the Triton kernels can do it: they need powers of two, as all released VAEs have."""
    return x.device.type == "cuda" and channels & (channels - 1) == 0


def _cut(placed: Placed, shape: tuple[int, int]) -> torch.Tensor:
    x, top, left = placed
    return x[:, :, top : top + shape[0], left : left + shape[1]]


def _combine_cuda(
    y: Placed,
    shape: tuple[int, int],
    channels: int,
    bias: torch.Tensor | None,
    residual: Placed | None,
    shuffled: bool,
    affine: Affine | None,
    silu: bool,
    keep: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    n, (height, width) = len(y[0]), shape
    value, activated = (
        torch.empty((n, height, width, channels), dtype=y[0].dtype, device=y[0].device) if wanted else None
        for wanted in (keep, affine is not None)
    )
    rest = y if residual is None else residual
    scale, shift = (y[0], y[0]) if affine is None else affine
    across = min(channels, 128)  # channels per program
    pixels = TILE // across
    kernels()["combine"][(-(-height * width // pixels), n, channels // across)](
        *(y[0], rest[0], y[0] if bias is None else bias, scale, shift),
        *(y[0] if value is None else value, y[0] if activated is None else activated),
        *(scale.stride(0), height * width, width, y[1], y[2], *_pixels(y[0]), rest[1], rest[2], *_pixels(rest[0])),
        CHANNELS=channels,
        PIXELS=pixels,
        ACROSS=across,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        SHUFFLED=shuffled,
        SILU=silu,
        KEEP=keep,
        AFFINE=affine is not None,
        num_warps=4,
    )
    value, activated = (None if made is None else made.permute(0, 3, 1, 2) for made in (value, activated))
    return value, activated


def _pixels(x: torch.Tensor) -> tuple[int, int]:
    """Of an image and of a row."""
    assert x.is_contiguous(memory_format=torch.channels_last), (x.shape, x.stride())
    return x.shape[2] * x.shape[3], x.shape[3]


def _measured_cuda(norm: nn.GroupNorm, y: torch.Tensor, bias: torch.Tensor | None) -> Affine:
    n, channels, height, width = y.shape
    across = min(channels, 128)
    pixels = TILE // across
    blocks = -(-height * width // (pixels * SUMMED_TILES))
    partial = torch.empty((n, blocks, 2, channels), dtype=torch.float32, device=y.device)
    assert y.is_contiguous(memory_format=torch.channels_last), (y.shape, y.stride())
    kernels()["sums"][(blocks, n, channels // across)](
        *(y, y if bias is None else bias, partial, height * width, blocks),
        CHANNELS=channels,
        PIXELS=pixels,
        ACROSS=across,
        STEPS=SUMMED_TILES,
        BIAS=bias is not None,
        num_warps=4,
    )
    scale, shift = torch.empty((2, n, channels), dtype=torch.float32, device=y.device)
    size = channels // norm.num_groups
    kernels()["affine"][(norm.num_groups, n)](
        *(partial, norm.weight, norm.bias, scale, shift, blocks, height * width * size, norm.eps),
        CHANNELS=channels,
        SIZE=size,
        ROWS=max(16, 1024 // size),
        num_warps=4,
    )
    return scale, shift


@cache
def kernels() -> dict[str, Any]:
    """The Triton kernels, by name. Made at the first use, because Triton comes only with torch for CUDA."""
    from models.runtime import triton_kernels

    return {"combine": triton_kernels.combine, "sums": triton_kernels.sums, "affine": triton_kernels.affine}
