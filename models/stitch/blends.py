"""Three ways to blend a face into a region of a frame.

Each takes the frame's region and the face on it, RGB uint8 `(h, w, 3)`, and paste weights uint8 `(h, w)`, and returns
the blended region. Where the weight is 0, the frame's own pixels stay, bit for bit. The functions are stateless;
poisson optionally takes the state of an utterance.

feather: weighted mean by the mask. poisson: gradients of the face, level of the frame: feather plus a correction u
that is 0 outside the mask, with ∇²u = −div((over − under) ∇α), which solves the gradient-domain equation
∇²f = div(α ∇over + (1 − α) ∇under) (Pérez, Gangnet and Blake 2003, with a soft mask). multiband: coarse detail gets a
wide transition, fine detail a narrow one (Burt and Adelson 1983).
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

Blend = Callable[[UInt8, UInt8, UInt8], UInt8]  # (frame, face, weights) → blended region

TRUSTED = 24.0  # grey levels: a difference of this size counts half, larger ones (a jaw against hair) less
CYCLES, SWEEPS = 3, 2  # V-cycles; relaxations before and after the coarse-grid correction
COARSEST_PX = 4
RELAX = 0.8  # damping of the Jacobi relaxation: 4 / 5 smooths best in two dimensions
SOLVE_PX = 160  # a wider region is solved on every 2nd, 4th, … pixel: the correction is smooth
LEVEL_S = 0.25  # time constant for smoothing the poisson correction over time
LEVEL_GRID = (48, 32)  # columns and rows at which the smoothed correction is stored
BANDS = 5  # the coarsest band is blended over about 2⁴ px
STEEP = 3.0  # multiband steepens the mask's edge by this factor, because each band widens it again
EDGE = 0.1  # share of the full weight: below it, multiband fades to the frame


@dataclass(frozen=True, slots=True, eq=False)
class Alpha:
    """A paste mask in frame space: uint8 weights of frame[top : top + h, left : left + w]."""

    top: int
    left: int
    weights: UInt8

    @property
    def region(self) -> tuple[slice, slice]:
        """The rows and columns of the frame that the mask covers."""
        height, width = self.weights.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def find_blend(mode: str) -> Blend:
    """The blend function of a paste mode. Raises ConfigError with the valid modes."""
    if mode not in BLENDS:
        raise ConfigError(f"There is no paste mode {mode!r}.", f"Use one of {', '.join(sorted(BLENDS))}.")
    return BLENDS[mode]


def feather(under: UInt8, over: UInt8, weights: UInt8) -> UInt8:
    """Weighted mean: `over` by `weights` / 255, `under` by the rest. Error below half a grey level."""
    share = cv2.multiply(weights, 1 / 255, dtype=cv2.CV_32F)
    return cv2.blendLinear(over, under, share, 1 - share)  # type: ignore[no-any-return]


@dataclass(slots=True)
class Level:
    """Smooths the correction of poisson over time. Lips at the mask's edge change the whole correction, so it flickers:
    without this, the skin down to the upper lip changes 1.2 times as much as in the source, with it 1.03 times."""

    grid: Float32 | None = None

    def smooth(self, correction: Float32, fps: float) -> Float32:
        """The correction `(h, w, 3)` of the next frame, smoothed."""
        height, width = correction.shape[:2]
        now = cast(Float32, cv2.resize(correction, LEVEL_GRID, interpolation=cv2.INTER_AREA))
        before = now if self.grid is None else self.grid
        self.grid = before + np.float32(1 - math.exp(-1 / (LEVEL_S * fps))) * (now - before)
        return correction + cast(Float32, cv2.resize(self.grid - now, (width, height), interpolation=cv2.INTER_LINEAR))


def poisson(under: UInt8, over: UInt8, weights: UInt8, level: Level | None = None, fps: float = 25.0) -> UInt8:
    """Gradients of the face, level of the frame; see the module. level: the state of one utterance, at `fps`."""
    share = cv2.multiply(weights, 1 / 255, dtype=cv2.CV_32F)
    difference = cv2.subtract(over, under, dtype=cv2.CV_32F)
    difference /= 1 + np.square(difference / TRUSTED)
    correction = solve(correction_source(difference, share), weights > 0)
    if level is not None:
        correction = level.smooth(correction, fps)  # pixels of weight 0 are restored below
    mixed = cv2.blendLinear(over.astype(np.float32), under.astype(np.float32), share, 1 - share) + correction
    out = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    cv2.copyTo(under, cv2.inRange(weights, 0, 0), out)
    return cast(UInt8, out)


def correction_source(difference: Float32, share: Float32) -> Float32:
    """−div(difference · ∇share), `(h, w, 3)`: the sum of mean difference × weight step over the pixel's four edges."""
    wide = cv2.copyMakeBorder(difference, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    alpha = cv2.copyMakeBorder(share, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    down = 0.5 * (wide[1:] + wide[:-1]) * (alpha[1:] - alpha[:-1])[..., None]  # (h + 1, w + 2, 3)
    right = 0.5 * (wide[:, 1:] + wide[:, :-1]) * (alpha[:, 1:] - alpha[:, :-1])[..., None]
    flow = down[1:, 1:-1] - down[:-1, 1:-1] + right[1:-1, 1:] - right[1:-1, :-1]
    return cast(Float32, -flow)


def solve(source: Float32, inside: np.ndarray) -> Float32:  # type: ignore[type-arg]
    """u `(h, w, 3)` with the five-point ∇²u = source `(h, w, 3)` where `inside` (h, w), and 0 elsewhere.

    Solved by multigrid V-cycles. A large region is solved on a coarser grid, since u is smooth.
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
    """One multigrid V-cycle on the grid of `u`."""
    u = _relax(u, right, domain, SWEEPS)
    height, width = domain.shape
    if min(height, width) > COARSEST_PX:
        rest = (right - _laplacian(u)) * domain[..., None]
        even = height % 2, width % 2
        rest, wide = (
            cv2.copyMakeBorder(a, 0, even[0], 0, even[1], cv2.BORDER_CONSTANT, value=0) for a in (rest, domain)
        )
        half = rest.shape[1] // 2, rest.shape[0] // 2
        coarse = cv2.resize(rest, half, interpolation=cv2.INTER_AREA) * np.float32(4)  # h² is four times as large
        within = np.floor(cv2.resize(wide, half, interpolation=cv2.INTER_AREA) + 0.25)  # at least three of four pixels
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
    """The five-point Laplacian, with 0 outside the grid."""
    return cast(Float32, cv2.filter2D(u, -1, LAPLACIAN, borderType=cv2.BORDER_CONSTANT))


LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)


def multiband(under: UInt8, over: UInt8, weights: UInt8) -> UInt8:
    """Blends each band of a Laplacian pyramid; see the module."""
    share = cv2.multiply(weights, 1 / 255, dtype=cv2.CV_32F)
    steep = np.clip((share - 0.5) * STEEP + 0.5, 0, 1)
    a, b, m = over.astype(np.float32), under.astype(np.float32), cast(Float32, steep)
    bands: list[Float32] = []
    for _ in range(_bands(weights.shape)):
        a2, b2 = cv2.pyrDown(a), cv2.pyrDown(b)
        size = a.shape[1], a.shape[0]
        fine = a - b - cv2.pyrUp(a2 - b2, dstsize=size)  # blending is linear, so one pyramid of over − under suffices
        bands.append(fine * m[..., None])
        a, b, m = a2, b2, cv2.pyrDown(m)
    total = (a - b) * m[..., None]
    for band in reversed(bands):
        total = cv2.pyrUp(total, dstsize=(band.shape[1], band.shape[0])) + band
    rim = np.minimum(share / EDGE, 1)[..., None]
    return cast(UInt8, np.clip(np.rint(under + total * rim), 0, 255).astype(np.uint8))


def _bands(shape: tuple[int, ...]) -> int:
    """The number of bands above the coarsest; fewer for a small region."""
    return max(1, min(BANDS - 1, int(np.log2(max(2, min(shape)))) - 2))


BLENDS: dict[str, Blend] = {"feather": feather, "poisson": poisson, "multiband": multiband}
