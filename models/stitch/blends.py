"""Three ways to lay a face over a region of a frame. Knows no geometry, no avatars and no time.

Each takes the frame's region and the face on it, RGB uint8 `(h, w, 3)`, and paste weights uint8 `(h, w)`, and returns
the region anew; where a weight is 0 the frame's own pixels stay, bit for bit. None remembers anything, so equal input
gives equal output however often it is asked; poisson may be given a memory.

feather: weighs by the mask. poisson: keeps the face's gradients and takes its level from the frame: feather, plus a
correction u that is 0 outside the mask, with ∇²u = −div((over − under) ∇α): the solution of the gradient-domain
equation ∇²f = div(α ∇over + (1 − α) ∇under) (Pérez, Gangnet and Blake 2003, with a soft mask). multiband: the coarser
the detail, the wider its transition (Burt and Adelson 1983).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from models.errors import ConfigError
from models.types import Float32, UInt8

Blend = Callable[[UInt8, UInt8, UInt8], UInt8]

TRUSTED = 24.0  # levels: a difference of so many counts half, larger ones (a jaw against hair) less: they would bleed
CYCLES, SWEEPS = 3, 2  # V-cycles; relaxations on the way down, and as many on the way up
COARSEST_PX = 4
RELAX = 0.8  # damping of Jacobi's relaxation: 4 / 5 smooths best in two dimensions
SOLVE_PX = 160  # the correction is smooth: a region wider than this is solved on every second pixel, and so on
LEVEL_S = 0.25  # time constant of the level that poisson takes from the frame
LEVEL_GRID = (48, 32)  # columns, rows on which it is remembered: it is smooth
BANDS = 5  # the coarsest band is blended over about 2⁴ px
STEEP = 3.0  # the mask's edge is made so much steeper for multiband, which widens it again band by band
EDGE = 0.1  # of full weight: within this much of the mask's rim multiband's result gives way to the frame


def find_blend(mode: str) -> Blend:
    """The blend behind a mode's name. Raises ConfigError, which names the modes."""
    if mode not in BLENDS:
        raise ConfigError(f"There is no paste mode {mode!r}.", f"Use one of {', '.join(sorted(BLENDS))}.")
    return BLENDS[mode]


def feather(under: UInt8, over: UInt8, weights: UInt8) -> UInt8:
    """`over` weighed by `weights` / 255, `under` by the rest; within half a level of exact."""
    share = cv2.multiply(weights, 1 / 255, dtype=cv2.CV_32F)
    return cv2.blendLinear(over, under, share, 1 - share)  # type: ignore[no-any-return]


@dataclass(slots=True)
class Level:
    """The correction of poisson over time. Lips that pass the mask's edge move all of it, so by itself it flickers: up
    to the upper lip 1.2 times as much as the source, with this 1.03 times."""

    grid: Float32 | None = None

    def steadied(self, correction: Float32, fps: float) -> Float32:
        """The correction `(h, w, 3)` of the next frame, its change slowed down."""
        height, width = correction.shape[:2]
        now = cast(Float32, cv2.resize(correction, LEVEL_GRID, interpolation=cv2.INTER_AREA))
        before = now if self.grid is None else self.grid
        self.grid = before + np.float32(1 - math.exp(-1 / (LEVEL_S * fps))) * (now - before)
        return correction + cast(Float32, cv2.resize(self.grid - now, (width, height), interpolation=cv2.INTER_LINEAR))


def poisson(under: UInt8, over: UInt8, weights: UInt8, level: Level | None = None, fps: float = 25.0) -> UInt8:
    """Gradients of the face, level of the frame; see above. level: the memory of one utterance, at `fps`."""
    share = cv2.multiply(weights, 1 / 255, dtype=cv2.CV_32F)
    difference = cv2.subtract(over, under, dtype=cv2.CV_32F)
    difference /= 1 + np.square(difference / TRUSTED)
    correction = solve(correction_source(difference, share), weights > 0)
    if level is not None:
        correction = level.steadied(correction, fps)  # where no weight is, the frame's own pixels stay all the same
    mixed = cv2.blendLinear(over.astype(np.float32), under.astype(np.float32), share, 1 - share) + correction
    out = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    cv2.copyTo(under, cv2.inRange(weights, 0, 0), out)
    return cast(UInt8, out)


def correction_source(difference: Float32, share: Float32) -> Float32:
    """−div(difference · ∇share), `(h, w, 3)`: each of the four edges of a pixel adds its mean difference × its step."""
    wide = cv2.copyMakeBorder(difference, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    alpha = cv2.copyMakeBorder(share, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    down = 0.5 * (wide[1:] + wide[:-1]) * (alpha[1:] - alpha[:-1])[..., None]  # (h + 1, w + 2, 3)
    right = 0.5 * (wide[:, 1:] + wide[:, :-1]) * (alpha[:, 1:] - alpha[:, :-1])[..., None]
    flow = down[1:, 1:-1] - down[:-1, 1:-1] + right[1:-1, 1:] - right[1:-1, :-1]
    return cast(Float32, -flow)


def solve(source: Float32, inside: np.ndarray) -> Float32:  # type: ignore[type-arg]
    """u `(h, w, 3)` with the five-point ∇²u = source `(h, w, 3)` where `inside` (h, w), and 0 elsewhere.

    By multigrid V-cycles; a large region is solved on a coarser grid, since u is smooth.
    """
    height, width = inside.shape
    coarser = 1
    while max(height, width) // coarser > SOLVE_PX:
        coarser *= 2
    size = -(-width // coarser), -(-height // coarser)
    pads = size[1] * coarser - height, size[0] * coarser - width
    domain = cv2.copyMakeBorder(inside.astype(np.float32), 1, pads[0] + 1, 1, pads[1] + 1, cv2.BORDER_CONSTANT, value=0)
    right = cv2.copyMakeBorder(source, 0, pads[0], 0, pads[1], cv2.BORDER_CONSTANT, value=0)
    if coarser > 1:
        right = cv2.resize(right, size, interpolation=cv2.INTER_AREA) * np.float32(coarser**2)
        domain = cv2.resize(domain[1:-1, 1:-1], size, interpolation=cv2.INTER_AREA)
        domain = cv2.copyMakeBorder(domain, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    domain = np.floor(domain[1:-1, 1:-1] + 0.5)
    u = np.zeros_like(right)
    for _ in range(CYCLES):
        u = _cycle(u, right, domain)
    if coarser > 1:
        u = cv2.resize(u, (size[0] * coarser, size[1] * coarser), interpolation=cv2.INTER_LINEAR)
    return cast(Float32, u[:height, :width] * inside[..., None])


def _cycle(u: Float32, right: Float32, domain: Float32) -> Float32:
    """One V-cycle on the grid of `u`."""
    u = _relax(u, right, domain, SWEEPS)
    height, width = domain.shape
    if min(height, width) > COARSEST_PX:
        rest = (right - _laplacian(u)) * domain[..., None]
        even = height % 2, width % 2
        rest, wide = (
            cv2.copyMakeBorder(a, 0, even[0], 0, even[1], cv2.BORDER_CONSTANT, value=0) for a in (rest, domain)
        )
        half = rest.shape[1] // 2, rest.shape[0] // 2
        coarse = cv2.resize(rest, half, interpolation=cv2.INTER_AREA) * np.float32(4)  # h² grows fourfold
        within = np.floor(cv2.resize(wide, half, interpolation=cv2.INTER_AREA) + 0.25)  # three of four pixels
        step = _cycle(np.zeros_like(coarse), coarse, within)
        fine = cv2.resize(step, (2 * half[0], 2 * half[1]), interpolation=cv2.INTER_LINEAR)[:height, :width]
        u = u + fine * domain[..., None]
    return _relax(u, right, domain, SWEEPS if min(height, width) > COARSEST_PX else 4 * SWEEPS)


def _relax(u: Float32, right: Float32, domain: Float32, sweeps: int) -> Float32:
    """Damped Jacobi: u + ω (∇²u − right) / 4 inside the domain."""
    step = (RELAX / 4 * domain)[..., None]
    for _ in range(sweeps):
        u = u + step * (_laplacian(u) - right)
    return u


def _laplacian(u: Float32) -> Float32:
    """Five points; 0 beyond the grid."""
    return cast(Float32, cv2.filter2D(u, -1, LAPLACIAN, borderType=cv2.BORDER_CONSTANT))


LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)


def multiband(under: UInt8, over: UInt8, weights: UInt8) -> UInt8:
    """Band by band over Laplacian pyramids; see above."""
    share = cv2.multiply(weights, 1 / 255, dtype=cv2.CV_32F)
    steep = np.clip((share - 0.5) * STEEP + 0.5, 0, 1)
    a, b, m = over.astype(np.float32), under.astype(np.float32), cast(Float32, steep)
    bands: list[Float32] = []
    for _ in range(_bands(weights.shape)):
        a2, b2 = cv2.pyrDown(a), cv2.pyrDown(b)
        size = a.shape[1], a.shape[0]
        fine = a - b - cv2.pyrUp(a2 - b2, dstsize=size)  # the blend is linear: under + Σ mask · (over's − under's band)
        bands.append(fine * m[..., None])
        a, b, m = a2, b2, cv2.pyrDown(m)
    total = (a - b) * m[..., None]
    for band in reversed(bands):
        total = cv2.pyrUp(total, dstsize=(band.shape[1], band.shape[0])) + band
    rim = np.minimum(share / EDGE, 1)[..., None]
    return cast(UInt8, np.clip(np.rint(under + total * rim), 0, 255).astype(np.uint8))


def _bands(shape: tuple[int, ...]) -> int:
    """Fewer for a region too small to be halved so often."""
    return max(1, min(BANDS - 1, int(np.log2(max(2, min(shape)))) - 2))


BLENDS: dict[str, Blend] = {"feather": feather, "poisson": poisson, "multiband": multiband}
