"""StableSyncNet's two encoders, with the keys of LatentSync's checkpoints.

Li et al. 2024 (ByteDance/LatentSync: latentsync/models/stable_syncnet.py; configs/syncnet/syncnet_16_pixel.yaml, and
syncnet_16_pixel_attn.yaml with attention): one encoder for 16 lower faces, one for the 52 mel frames at the same time.
Similar vectors mean that lips and speech match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 32
NORM_EPS = 1e-6
HEADS = 8

Stride = tuple[int, int]  # rows, columns


@dataclass(frozen=True, slots=True)
class EncoderLayout:
    """channels_in: of the input. strides, channels: per block. attention: per block, whether attention follows it."""

    channels_in: int
    strides: tuple[Stride, ...]
    channels: tuple[int, ...]
    attention: tuple[bool, ...]


VISUAL = EncoderLayout(
    channels_in=48,  # 16 frames × RGB
    strides=((1, 2), *((2, 2),) * 7),  # (128, 256) → (1, 1)
    channels=(64, 128, 256, 256, 512, 1024, 2048, 2048),
    attention=(False,) * 8,
)
AUDIO = EncoderLayout(
    channels_in=1,
    strides=((2, 1), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2), (2, 3)),  # (80, 52) → (1, 1)
    channels=(32, 64, 128, 256, 512, 1024, 2048),
    attention=(False,) * 7,
)


def layout_of(state: Mapping[str, Any], prefix: str, known: EncoderLayout) -> EncoderLayout:
    """Return `known` with the widths and the attention of a checkpoint's encoder; unchanged if the depth differs."""
    channels: list[int] = []
    attention: list[bool] = []
    while True:
        block = f"{prefix}.down_blocks.{len(channels) + sum(attention)}"
        if f"{block}.conv1.weight" in state:
            channels.append(state[f"{block}.conv1.weight"].shape[0])
            attention.append(False)
        elif f"{block}.attn.to_q.weight" in state and channels:
            attention[-1] = True
        else:
            break
    if len(channels) != len(known.channels):
        return known
    return EncoderLayout(known.channels_in, known.strides, tuple(channels), tuple(attention))


class ResnetBlock(nn.Module):  # type: ignore[misc]
    """Two normalised convolutions with a shortcut, then a strided convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: Stride) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels_in, NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out, NORM_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None
        self.downsample_conv = nn.Conv2d(channels_out, channels_out, 3, stride) if stride != (1, 1) else None
        rows, columns = ((1, 1) if step == 1 else (0, 1) for step in stride)  # a strided axis: padded only at its end
        self.pad = (*columns, *rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        y = y + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return y if self.downsample_conv is None else self.downsample_conv(F.pad(y, self.pad))


class Attention(nn.Module):  # type: ignore[misc]
    """Self-attention with eight heads over `(n, positions, channels)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):  # type: ignore[misc]
    """GEGLU: projects to twice the width; one half gates the other (Shazeer 2020)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels_in, 2 * channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):  # type: ignore[misc]
    """diffusers' feed-forward: `net.0.proj`, a dropout (here an identity), `net.2`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedGelu(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class AttentionBlock(nn.Module):  # type: ignore[misc]
    """Attention and feed-forward over all positions of `(n, channels, h, w)`, with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, NORM_EPS)
        self.norm2, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.ff = Attention(channels), FeedForward(channels)
        self.conv_in, self.conv_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_in(self.norm1(x)).flatten(2).transpose(1, 2)  # (n, h · w, channels)
        y = self.attn(self.norm2(y)) + y
        y = self.ff(self.norm3(y)) + y
        return self.conv_out(y.transpose(1, 2).unflatten(2, x.shape[2:])) + x


class Encoder(nn.Module):  # type: ignore[misc]
    """`(n, channels_in, h, w)` → unit vectors `(n, d)`."""

    def __init__(self, layout: EncoderLayout) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(layout.channels_in, layout.channels[0], 3, padding=1)
        blocks: list[nn.Module] = []
        channels = layout.channels[0]
        for stride, channels_out, attends in zip(layout.strides, layout.channels, layout.attention, strict=True):
            blocks.append(ResnetBlock(channels, channels_out, stride))
            if attends:
                blocks.append(AttentionBlock(channels_out))
            channels = channels_out
        self.down_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.GroupNorm(GROUPS, channels, NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return F.normalize(F.relu(self.norm_out(x)).flatten(1), dim=1)


class StableSyncNet(nn.Module):  # type: ignore[misc]
    """Both encoders. They are called separately, because a clip has more windows of sound than of pictures."""

    def __init__(self, visual: EncoderLayout = VISUAL, audio: EncoderLayout = AUDIO) -> None:
        super().__init__()
        self.visual_encoder, self.audio_encoder = Encoder(visual), Encoder(audio)
