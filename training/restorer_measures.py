"""Compares a restorer with its baselines: bicubic upsampling and the best of a grid of unsharp masks.

Pictures are float RGB `(n, 3, h, w)` in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.degradation import blur

GREY = 255.0
UNSHARP_GRID = tuple((sigma, amount) for sigma in (0.7, 1.0, 1.5, 2.0, 3.0) for amount in (0.15, 0.3, 0.6, 1.0))


@dataclass(frozen=True, slots=True)
class Comparison:
    """PSNR in dB, the mean over pictures; flicker in grey levels, see `flicker`."""

    bicubic_db: float
    unsharp_db: float
    restored_db: float
    unsharp_sigma_px: float
    unsharp_amount: float
    bicubic_flicker: float
    unsharp_flicker: float
    restored_flicker: float

    @property
    def gain_db(self) -> float:
        """Gain over the better baseline."""
        return self.restored_db - max(self.bicubic_db, self.unsharp_db)

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "gain_db": self.gain_db}


def compare(views: Tensor, restored: Tensor, clean: Tensor) -> Comparison:
    """views: degraded pictures in time order, `(t, n, 3, 256, 256)`; restored: from them, `(t, n, 3, 512, 512)`.

    clean: the truth, `(n, 3, 512, 512)` for still pictures, or of the shape of `restored`. The unsharp mask has an
    advantage, because it is chosen on the same pictures.
    """
    truth = clean.expand_as(restored)
    shape = restored.shape
    plain = upsample(views.flatten(0, 1))
    scores = {spot: score(unsharp(plain, *spot).view(shape), truth) for spot in UNSHARP_GRID}
    best = max(scores, key=lambda spot: scores[spot])
    return Comparison(
        bicubic_db=score(plain.view(shape), truth),
        unsharp_db=scores[best],
        restored_db=score(restored, truth),
        unsharp_sigma_px=best[0],
        unsharp_amount=best[1],
        bicubic_flicker=flicker(plain.view(shape), truth),
        unsharp_flicker=flicker(unsharp(plain, *best).view(shape), truth),
        restored_flicker=flicker(restored, truth),
    )


def score(pictures: Tensor, truth: Tensor) -> float:
    """Mean PSNR in dB of `(t, n, 3, h, w)`."""
    return float(psnr(pictures.flatten(0, 1), truth.flatten(0, 1)).mean())


def flicker(pictures: Tensor, truth: Tensor) -> float:
    """Mean frame-to-frame change that the truth does not have, in grey levels; both `(t, n, 3, h, w)`."""
    return float((pictures.diff(dim=0) - truth.diff(dim=0)).abs().mean()) * GREY


def table(rows: dict[str, Comparison], say: Callable[[str], None] = print) -> None:
    """Print one line per comparison."""
    say(f"{'':12s}{'bicubic':>9s}{'+ unsharp':>11s}{'restored':>10s}{'gain':>7s}   flicker in grey levels, same order")
    for name, row in rows.items():
        say(
            f"{name:12s}{row.bicubic_db:9.2f}{row.unsharp_db:11.2f}{row.restored_db:10.2f}{row.gain_db:7.2f} dB"
            f"{row.bicubic_flicker:8.2f}{row.unsharp_flicker:8.2f}{row.restored_flicker:8.2f}"
        )


def psnr(ours: Tensor, truth: Tensor) -> Tensor:
    """dB of each picture `(n,)`, both `(n, 3, h, w)` in 0..1."""
    return -10 * torch.log10((ours.clamp(0, 1) - truth).square().mean((1, 2, 3)))


def upsample(faces: Tensor) -> Tensor:
    """Bicubic × 2, clipped."""
    return F.interpolate(faces, scale_factor=2, mode="bicubic").clamp(0, 1)


def unsharp(pictures: Tensor, sigma_px: float, amount: float) -> Tensor:
    """Add `amount` times the difference from a blurred copy."""
    blurred = blur(pictures, torch.full((len(pictures),), sigma_px, device=pictures.device))
    return (pictures + amount * (pictures - blurred)).clamp(0, 1)
