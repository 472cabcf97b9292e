"""Degrades a clean face to a crop as LipSync gives it: 256², soft and noisy.

The order is that of the product: the source video is resampled, blurred, noisy and compressed; the crop then passes the
small VAE, with latents that the UNet only approximates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.types import CROP_PX, LATENT_PX

BLOCK = 8  # side of a JPEG block
# ITU-T T.81, annex K.1: quantisation steps at quality 50
LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99, 99, 99, 99, 99, 99, 99, 99),) * 4,
)
YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF


@dataclass(frozen=True, slots=True)
class Ranges:
    """Maximum strength of each kind of degradation. The strength of a picture is uniform between none and this."""

    blur_px: float = 0.8  # standard deviation, in pixels of the 256² crop
    shrink: float = 0.7  # the face may be this much smaller in the source than in the crop
    noise: float = 0.02  # standard deviation in 0..1: 5 grey levels
    quality: tuple[float, float] = (35.0, 95.0)  # JPEG's scale
    latent_noise: float = 0.12  # in standard deviations of the latents, white
    latent_drift: float = 0.12  # the same, smooth over 4 latent pixels: errors of a UNet are spatially correlated
    latent_blur_px: float = 0.5  # in latent pixels: an uncertain UNet gives the mean of several mouths


DEFAULT = Ranges()


class VAE:
    """An AutoencoderTiny from a folder in diffusers' format, with latents of unit variance."""

    def __init__(self, folder: Path | str, device: str) -> None:
        from diffusers import AutoencoderTiny

        self.model: Any = AutoencoderTiny.from_pretrained(str(folder)).float().eval().requires_grad_(False)
        self.model.to(device, memory_format=torch.channels_last)
        self.scale = float(self.model.config.scaling_factor)  # latents × scale have unit variance

    def encode(self, faces: Tensor) -> Tensor:
        """`(n, 3, 256, 256)` in 0..1 → `(n, 4, 32, 32)` of unit variance."""
        latents: Tensor = self.model.encode(faces * 2 - 1).latents * self.scale
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """`(n, 4, 32, 32)` of unit variance → `(n, 3, 256, 256)` in 0..1."""
        faces: Tensor = self.model.decode(latents / self.scale).sample
        return (faces.float() * 0.5 + 0.5).clamp(0, 1)


class Degradation:
    """Random degradation from `generator`. Pictures are float RGB in 0..1, on `device`."""

    def __init__(self, vae: VAE | None, generator: torch.Generator, device: str, ranges: Ranges = DEFAULT) -> None:
        self.vae, self.generator, self.device, self.ranges = vae, generator, device, ranges

    def __call__(self, clean: Tensor, through_vae: Tensor | None = None, views: int = 1) -> Tensor:
        """`(n, 3, 512, 512)` → `(views, n, 3, 256, 256)`, rounded to 8 bits.

        Views of a picture have equal strengths and different noise, like frames of a video. through_vae: bool `(n,)`,
        the pictures that pass the VAE; by default all, and none without a VAE.
        """
        return self._degrade(self._small(clean).repeat(views, 1, 1, 1), len(clean), views, through_vae)

    def clip(self, frames: Tensor) -> Tensor:
        """A video of one face, `(t, 3, 512, 512)` → `(t, 3, 256, 256)`: equal strengths for all frames."""
        return self._degrade(self._small(frames), 1, len(frames), None)[:, 0]

    def _small(self, clean: Tensor) -> Tensor:
        return F.interpolate(clean, size=(CROP_PX, CROP_PX), mode="area")

    def _degrade(self, small: Tensor, n: int, views: int, through_vae: Tensor | None) -> Tensor:
        """small: `(views · n, 3, 256, 256)`, view by view → `(views, n, 3, 256, 256)`."""
        small = self._soften(small, n, views)
        noise = self._strength(n, views, self.ranges.noise)
        small = (small + noise * self._normal(*small.shape)).clamp(0, 1)
        low, high = self.ranges.quality
        small = jpeg(small, low + (high - low) * self._uniform(n).repeat(views))
        if self.vae is not None:
            passing = torch.ones(n, dtype=torch.bool) if through_vae is None else through_vae
            passing = passing.to(small.device).repeat(views).view(-1, 1, 1, 1)
            small = torch.where(passing, self._trip(small, n, views), small)
        return (small * 255).round().div(255).view(views, n, *small.shape[1:])

    def _soften(self, small: Tensor, n: int, views: int) -> Tensor:
        """Blur each picture by its own width; resample some of them through a common smaller size."""
        side = round(CROP_PX * (self.ranges.shrink + (1 - self.ranges.shrink) * float(self._uniform(1))))
        coarse = F.interpolate(small, size=(side, side), mode="bilinear", antialias=True)
        coarse = F.interpolate(coarse, size=(CROP_PX, CROP_PX), mode="bicubic").clamp(0, 1)
        chosen = (self._uniform(n) < 0.5).repeat(views).view(-1, 1, 1, 1)
        return blur(torch.where(chosen, coarse, small), self._uniform(n).repeat(views) * self.ranges.blur_px)

    def _trip(self, small: Tensor, n: int, views: int) -> Tensor:
        """Pass pictures through the VAE, with errors added to the latents as the UNet makes them."""
        assert self.vae is not None
        widths = self._uniform(n).repeat(views) * self.ranges.latent_blur_px
        latents = blur(self.vae.encode(small), widths)  # (views · n, 4, 32, 32)
        white = self._strength(n, views, self.ranges.latent_noise) * self._normal(*latents.shape)
        coarse = self._normal(*latents.shape[:2], LATENT_PX // 4, LATENT_PX // 4)
        smooth = F.interpolate(coarse, size=latents.shape[2:], mode="bicubic")
        return self.vae.decode(latents + white + self._strength(n, views, self.ranges.latent_drift) * smooth)

    def _uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator, device=self.generator.device).to(self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device).to(self.device)

    def _strength(self, n: int, views: int, most: float) -> Tensor:
        return (most * self._uniform(n)).repeat(views).view(-1, 1, 1, 1)


def blur(pictures: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of `(n, c, h, w)` by one standard deviation per picture `(n,)`; borders are replicated."""
    n, channels, height, width = pictures.shape
    radius = max(1, math.ceil(3 * float(sigma_px.max())))
    at = torch.arange(-radius, radius + 1, device=pictures.device, dtype=torch.float32)
    taps = torch.exp(-0.5 * (at / sigma_px.view(-1, 1).clamp(min=1e-3)) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # (n · 3, taps)
    stacked = F.pad(pictures, (radius,) * 4, mode="replicate").reshape(1, n * channels, height + 2 * radius, -1)
    stacked = F.conv2d(stacked, taps[:, None, None, :], groups=n * channels)
    return F.conv2d(stacked, taps[:, None, :, None], groups=n * channels).view(n, channels, height, width)


def jpeg(pictures: Tensor, quality: Tensor) -> Tensor:
    """The loss of JPEG, without encoding: `(n, 3, h, w)` in 0..1, sides divisible by 16; `quality` `(n,)` in 1..100.

    JFIF colours, chroma at half size, 8 × 8 DCT, the standard tables with libjpeg's quality scale.
    """
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    luma_steps, chroma_steps, to_ycc, to_rgb = _tables(str(pictures.device))
    ycc = torch.einsum("yc,nchw->nyhw", to_ycc, pictures * 255)
    luma = _quantise(ycc[:, :1] - 128, luma_steps, scale) + 128
    chroma = _quantise(F.avg_pool2d(ycc[:, 1:], 2), chroma_steps, scale)
    ycc = torch.cat([luma, F.interpolate(chroma, scale_factor=2, mode="bilinear")], 1)
    return (torch.einsum("cy,nyhw->nchw", to_rgb, ycc) / 255).clamp(0, 1)


@lru_cache(maxsize=4)
def _tables(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Luma and chroma steps `(8, 8)`, RGB → YCbCr and back `(3, 3)`."""
    to_ycc = torch.tensor(YCC, dtype=torch.float64)
    tables = (torch.tensor(LUMA_STEPS), torch.tensor(CHROMA_STEPS), to_ycc, torch.linalg.inv(to_ycc))
    luma, chroma, there, back = (table.float().to(device) for table in tables)
    return luma, chroma, there, back


@lru_cache(maxsize=4)
def _dct(device: str) -> Tensor:
    """The orthonormal DCT-II `(8, 8)`: row k is the k-th basis function."""
    k = torch.arange(BLOCK, dtype=torch.float64)
    basis = torch.cos(math.pi * k[:, None] * (2 * k[None] + 1) / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis.float().to(device)


def _quantise(planes: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    """Round the DCT coefficients of `(n, c, h, w)` to multiples of `steps` × `scale` `(n,)`."""
    n, channels, height, width = planes.shape
    dct = _dct(str(planes.device))
    blocks = planes.view(n, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    step = (steps * scale.view(-1, 1, 1)).clamp(min=1)[:, None, None, :, None, :]  # (n, 1, 1, 8, 1, 8)
    coefficients = torch.einsum("ki,ncyixj,lj->ncykxl", dct, blocks, dct)
    rounded = (coefficients / step).round() * step
    return torch.einsum("ki,ncykxl,lj->ncyixj", dct, rounded, dct).reshape(n, channels, height, width)
