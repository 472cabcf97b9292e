"""Losses on images `(b, 3, h, w)` in [-1, 1], on latents and on mouth readings."""

from __future__ import annotations

import torch
from torch import Tensor

from models.types import CROP_PX, LATENT_PX


def image_weight(device: torch.device | str, mouth: float = 3.0) -> Tensor:
    """Weights `(1, 1, 256, 256)` with mean 1: mouth and chin count `mouth` times as much as the rest."""
    weight = torch.ones(1, 1, CROP_PX, CROP_PX, device=device)
    weight[:, :, 150:240, 60:196] = mouth
    return weight / weight.mean()


def latent_weight(device: torch.device | str, mouth: float = 3.0) -> Tensor:
    """Weights `(1, 1, 32, 32)` with mean 1, like `image_weight`; the upper half, which is pasted over, counts 0.3."""
    weight = torch.ones(1, 1, LATENT_PX, LATENT_PX, device=device)
    weight[:, :, : LATENT_PX // 2] = 0.3
    weight[:, :, 18:30, 7:25] = mouth
    return weight / weight.mean()


def weighted_l1(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return ((a - b).abs() * weight).mean()


def gradient_l1(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """L1 of the horizontal and vertical gradients, which keeps edges sharp."""
    error = a - b
    across = (error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]
    down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
    return across.mean() + down.mean()


def image_loss(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1, plus half of the L1 of gradients."""
    return weighted_l1(image, target, weight) + 0.5 * gradient_l1(image, target, weight)


def slope_loss(read: Tensor, truth: Tensor) -> Tensor:
    """Squared difference from 1 of the regression slope of readings `(b, k)` on their truth, mean over the k readings.

    A network that is uncertain about a sound draws a mean of the possible mouths, so its movements are too small. A
    slope of 1 over a batch restores their size; the errors of single frames are left to the other losses.
    """
    centred = truth - truth.mean(0)
    slope = (centred * (read - read.mean(0))).mean(0) / (centred**2).mean(0).clamp(min=1e-4)
    return ((slope - 1) ** 2).mean()


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1], in dB."""
    return float(10 * torch.log10(4 / ((a - b) ** 2).mean().clamp(min=1e-10)))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of two series."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt().clamp(min=1e-12))
