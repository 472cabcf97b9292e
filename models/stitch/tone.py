"""Matches the colour and the sharpness of a pasted face to the surrounding frame.

Both are measured where the mask fades, because face and frame show the same skin there, and both change slowly, so that
moving lips do not change the colour. Colour is corrected by a gain per channel that varies linearly across the face. A
gain g of linear light is a gain g^(1/2.2) of power-law coded values, so a gain keeps black at black in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import Float32, UInt8

Float64 = npt.NDArray[np.float64]
Image = TypeVar("Image", Float32, UInt8)

RING = (8, 247)  # paste weights between which face and frame are compared
GRID = (48, 32)  # columns and rows at which colour is measured: coarse, so that noise averages out
LEAST_RING = 24  # minimum number of grid cells for a measurement
ROUNDS, ROBUST_LEVELS = 3, 6.0  # rounds of reweighting; a cell with this residual (a lip, a jaw, hair) counts half
RIDGE = np.array([0.02, 0.1, 0.1])  # regularisation of gain, horizontal and vertical slope, as a share of the ring
MOST_GAIN = 0.15  # limit of the gain: a larger difference is different light, not a codec's bias
DETAIL_SIGMA_PX = 1.5  # finer structure counts as detail, in px of the coarser of crop and frame; see models.quality
DETAIL_CAP = 12.0  # grey levels: limits the weight of an outline compared with skin
DETAIL_FLOOR = 0.1  # grey levels, far below the noise that H.264 leaves
UPPER, CHEEKS = 0.3, 0.6  # shares of the mask's height: above UPPER all skin counts, then the ring, below CHEEKS none
SHARPEN = (-0.6, 0.5)  # limits of the share of its own detail that a face loses or gains: more would amplify noise
COLOR_S, SHARP_S = 0.5, 1.0  # time constants
SEE_EVERY = 4  # frames between two measurements: both change slowly, and a measurement takes a third of a millisecond
STILL_GAIN, STILL_SHARP = 0.002, 0.03  # smaller corrections are not applied


@dataclass(slots=True)
class Tone:
    """The measurements of one utterance so far.

    gain: float64 `(3, 3)`, one row per channel: gain − 1 in the middle, and its change to the right and the lower edge.
    sharp: the share of its own fine detail that the face gains (> 0) or loses (< 0).
    """

    gain: Float64 | None = None
    sharp: float | None = None
    frames: int = 0
    _field: Float32 | None = None  # of the gain, for the size used last

    def due(self) -> bool:
        """Count a frame. Whether it is to be measured: every SEE_EVERY-th frame, starting with the first."""
        self.frames += 1
        return (self.frames - 1) % SEE_EVERY == 0

    def measure_color(self, own: UInt8, over: UInt8, weights: UInt8, fps: float) -> None:
        """Update the gain from a frame: its region `own` and the face `over`, both `(h, w, 3)`, and paste weights."""
        found = color_gain(own, over, weights)
        if found is not None:
            self.gain = found if self.gain is None else self.gain + _share(COLOR_S, fps) * (found - self.gain)
            self._field = None

    def measure_detail(
        self, own: UInt8, over: Image, weights: UInt8, sigma: float, fps: float, hidden: tuple[int, int] = (0, 0)
    ) -> None:
        """Update the sharpness, see `measure_color`. sigma: see `detail_sigma`. hidden: see `detail_amount`."""
        found = detail_amount(own, over, weights, sigma, hidden)
        if found is not None:
            self.sharp = found if self.sharp is None else self.sharp + _share(SHARP_S, fps) * (found - self.sharp)

    def match_color(self, over: UInt8) -> UInt8:
        """The face with the colour of the frame."""
        if self.gain is None or np.abs(self.gain).sum(1).max() < STILL_GAIN:
            return over
        if self._field is None or self._field.shape != over.shape:
            self._field = gain_field(self.gain, over.shape[:2])
        return cast(UInt8, cv2.multiply(over, self._field, dtype=cv2.CV_8U))

    def match_sharpness(self, over: Image, sigma: float) -> Image:
        """The face with the sharpness of the frame: its own fine detail is amplified or attenuated."""
        amount = self.sharp or 0.0
        if abs(amount) < STILL_SHARP:
            return over
        return cast(Image, cv2.addWeighted(over, 1 + amount, _blurred(over, sigma), -amount, 0))


def color_gain(own: UInt8, over: UInt8, weights: UInt8) -> Float64 | None:
    """The gain `(3, 3)`, see `Tone`, that matches `over` to `own` on the ring; None if the ring is too small."""
    small_own, small_over, alpha = (cv2.resize(a, GRID, interpolation=cv2.INTER_AREA) for a in (own, over, weights))
    ring = (alpha >= RING[0]) & (alpha <= RING[1])
    if int(ring.sum()) < LEAST_RING:
        return None
    rows, columns = np.nonzero(ring)
    x, y = (2 * columns + 1) / GRID[0] - 1, (2 * rows + 1) / GRID[1] - 1
    base = np.stack([np.ones_like(x), x, y], 1)  # (m, 3)
    face = small_over[ring].astype(np.float64)  # (m, 3 channels)
    short = small_own[ring].astype(np.float64) - face
    squares, products = (base[:, :, None] * base[:, None]).reshape(-1, 9), face * short
    gain, trust = np.zeros((3, 3)), np.ones(len(face))
    for _ in range(ROUNDS):
        weight = (trust[:, None] * face * face).T  # (c, m)
        total = np.maximum(weight.sum(1), 1.0)  # keeps the equation of an all-black channel solvable
        normal = (weight @ squares).reshape(3, 3, 3) + total[:, None, None] * np.diag(RIDGE)
        gain = np.linalg.solve(normal, ((trust[:, None] * products).T @ base)[..., None])[..., 0]
        rest = np.abs(short - face * (base @ gain.T)).max(1) / ROBUST_LEVELS
        trust = 1 / (1 + rest * rest)
    largest = np.abs(gain).sum(1, keepdims=True)  # the value at a corner
    return cast(Float64, gain * np.minimum(1, MOST_GAIN / np.maximum(largest, 1e-9)))


def gain_field(gain: Float64, shape: tuple[int, ...]) -> Float32:
    """The gain of each pixel of a region of (height, width), `(height, width, 3)`."""
    height, width = shape
    x = ((2 * np.arange(width) + 1) / width - 1).astype(np.float32)
    y = ((2 * np.arange(height) + 1) / height - 1).astype(np.float32)
    middle, across, down = gain.astype(np.float32).T  # (3,) each
    # one product of (height, 2) and (2, 3 width): broadcasting over three channels costs eight times as much
    rows = np.stack([(1 + middle + x[:, None] * across).ravel(), np.tile(down, width)])
    return cast(Float32, (np.stack([np.ones_like(y), y], 1) @ rows).reshape(height, width, 3))


def detail_sigma(crop_px_per_frame_px: float) -> float:
    """The scale of detail in frame px: a crop that is enlarged has no detail as fine as the frame's."""
    return DETAIL_SIGMA_PX * max(1.0, 1 / crop_px_per_frame_px)


def detail_amount(
    own: UInt8, over: Image, weights: UInt8, sigma: float, hidden: tuple[int, int] = (0, 0)
) -> float | None:
    """The share of its own fine detail that `over` lacks to be as sharp as `own`; None if they cannot be compared.

    own, over: RGB `(h, w, 3)`, or luma `(h, w)`.

    Compared is the skin that both show: above the lips all of it, beside them the ring. Below, the face moves with
    speech. hidden: number of mask rows above and below the frame.

    Detail D is mean |v − G v| for a Gaussian blur G. Adding a share a of v − G v gives D + a · D', where D' is the mean
    absolute value of the high-pass v − G v applied twice.
    """
    whole, above = len(weights) + sum(hidden), hidden[0]
    upper, cheeks = (max(math.ceil(share * whole) - above, 0) for share in (UPPER, CHEEKS))
    if cheeks == 0:
        return None
    weights = weights[:cheeks]
    ring = cv2.inRange(weights, *RING)
    if upper:
        ring[:upper] = cv2.inRange(weights[:upper], RING[0], 255)
    if cv2.countNonZero(ring) < LEAST_RING:
        return None
    greys = (
        image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (own[:cheeks], over[:cheeks])
    )
    fine_own, fine = (_fine(grey.astype(np.float32), sigma) for grey in greys)
    wanted, has, gains = (_level(image, ring) for image in (fine_own, fine, _fine(fine, sigma)))
    return float(np.clip((wanted - has) / (gains + DETAIL_FLOOR), *SHARPEN))


def _fine(grey: Float32, sigma: float) -> Float32:
    return cast(Float32, grey - _blurred(grey, sigma))


def _blurred(image: Image, sigma: float) -> Image:
    """A Gaussian blur. OpenCV 5's GaussianBlur takes three times as long on 8-bit images and gives the same levels."""
    kernel = cv2.getGaussianKernel(round(6 * sigma + 1) | 1, sigma, cv2.CV_32F)
    return cast(Image, cv2.sepFilter2D(image, -1, kernel, kernel))


def _level(fine: Float32, ring: UInt8) -> float:
    return float(cv2.mean(np.minimum(np.abs(fine), DETAIL_CAP), ring)[0])


def _share(time_s: float, fps: float) -> float:
    """The weight of one measured frame in a running mean with this time constant."""
    return 1 - math.exp(-SEE_EVERY / (time_s * fps))
