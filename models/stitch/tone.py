"""Gives a pasted face the colour and the sharpness of the frame around it. Knows no avatars, masks or blends.

Both are measured where the mask fades, where face and frame show the same skin, and change slowly: lips that move
through the ring do not move the colour. Colour is a gain a channel, in linear light as in power-law coded values alike
(a gain g of the light is a gain g^(1/2.2) of the code), so black stays black; it varies linearly across the face.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.types import Float32, UInt8

Float64 = npt.NDArray[np.float64]

RING = (8, 247)  # paste weights between which both pictures are looked at
GRID = (48, 32)  # columns, rows that colour is measured on: coarse, so that noise averages out
LEAST_RING = 24  # cells of that grid: fewer say nothing
ROUNDS, ROBUST_LEVELS = 3, 6.0  # of reweighting: a cell this far off (a lip, a jaw, hair) counts half
RIDGE = np.array([0.02, 0.1, 0.1])  # pull of gain, slope across and slope down towards none, as a share of the ring
MOST_GAIN = 0.15  # a larger difference is another light, not a coder's bias
DETAIL_SIGMA_PX = 1.5  # finer than this is detail, in px of the coarser of crop and frame; as models.quality.seam
DETAIL_CAP = 12.0  # grey levels: an outline must not weigh more than skin
DETAIL_FLOOR = 0.1  # grey levels, far below what H.264 leaves
UPPER, CHEEKS = 0.3, 0.6  # of the mask's height: above the lips all skin counts, then the ring, below nothing
SHARPEN = (-0.6, 0.5)  # share of its own fine detail that a face loses or gains at most: more would lift noise, too
COLOR_S, SHARP_S = 0.5, 1.0  # time constants
SEE_EVERY = 4  # frames: both change slowly, and looking takes a third of a millisecond each
STILL_GAIN, STILL_SHARP = 0.002, 0.03  # below these nothing is done


@dataclass(slots=True)
class Tone:
    """What is known by now; it starts from nothing with every utterance.

    gain: float64 `(3, 3)`, a channel a row: gain − 1 in the middle, and its change to the right and lower edge. sharp:
    the share of its own fine detail that the face gains, or loses.
    """

    gain: Float64 | None = None
    sharp: float | None = None
    frames: int = 0

    def due(self) -> bool:
        """Whether the next frame is to be looked at: every fourth, from the first on."""
        self.frames += 1
        return (self.frames - 1) % SEE_EVERY == 0

    def see_color(self, own: UInt8, over: UInt8, weights: UInt8, fps: float) -> None:
        """Learn from one more frame: its region `own`, the face `over` it, both `(h, w, 3)`, and paste weights."""
        found = color_gain(own, over, weights)
        if found is not None:
            self.gain = found if self.gain is None else self.gain + _share(COLOR_S, fps) * (found - self.gain)

    def see_detail(
        self, own: UInt8, over: UInt8, weights: UInt8, sigma: float, fps: float, hidden: tuple[int, int] = (0, 0)
    ) -> None:
        """As `see_color`; sigma: see `detail_sigma`. hidden: see `detail_amount`."""
        found = detail_amount(own, over, weights, sigma, hidden)
        if found is not None:
            self.sharp = found if self.sharp is None else self.sharp + _share(SHARP_S, fps) * (found - self.sharp)

    def colored(self, over: UInt8) -> UInt8:
        """The face in the frame's colour."""
        if self.gain is None or np.abs(self.gain).sum(1).max() < STILL_GAIN:
            return over
        return cast(UInt8, cv2.multiply(over, gain_field(self.gain, over.shape[:2]), dtype=cv2.CV_8U))

    def sharpened(self, over: UInt8, sigma: float) -> UInt8:
        """The face as sharp as the frame: so much of its own fine detail more, or less."""
        amount = self.sharp or 0.0
        if abs(amount) < STILL_SHARP:
            return over
        return cast(UInt8, cv2.addWeighted(over, 1 + amount, cv2.GaussianBlur(over, (0, 0), sigma), -amount, 0))


def color_gain(own: UInt8, over: UInt8, weights: UInt8) -> Float64 | None:
    """The gain, `(3, 3)` as in `Tone`, that brings `over` to `own` on the ring; None where the ring is too small."""
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
        total = np.maximum(weight.sum(1), 1.0)  # a channel that is black all around has no gain, but an equation
        normal = (weight @ squares).reshape(3, 3, 3) + total[:, None, None] * np.diag(RIDGE)
        gain = np.linalg.solve(normal, ((trust[:, None] * products).T @ base)[..., None])[..., 0]
        rest = np.abs(short - face * (base @ gain.T)).max(1) / ROBUST_LEVELS
        trust = 1 / (1 + rest * rest)
    largest = np.abs(gain).sum(1, keepdims=True)  # at a corner
    return cast(Float64, gain * np.minimum(1, MOST_GAIN / np.maximum(largest, 1e-9)))


def gain_field(gain: Float64, shape: tuple[int, ...]) -> Float32:
    """The gain of each pixel of a region of (height, width), `(height, width, 3)`."""
    height, width = shape
    x = ((2 * np.arange(width) + 1) / width - 1).astype(np.float32)
    y = ((2 * np.arange(height) + 1) / height - 1).astype(np.float32)
    middle, across, down = gain.astype(np.float32).T  # (3,) each
    # rows as wide as the picture: broadcasting over three channels costs four times as much
    rows = np.tile(1 + middle + y[:, None] * down, (1, width))  # (height, 3 width)
    rows += (x[:, None] * across).ravel()
    return cast(Float32, rows.reshape(height, width, 3))


def detail_sigma(crop_px_per_frame_px: float) -> float:
    """What counts as detail, in frame px: a face larger than its crop has none as fine as the frame's."""
    return DETAIL_SIGMA_PX * max(1.0, 1 / crop_px_per_frame_px)


def detail_amount(
    own: UInt8, over: UInt8, weights: UInt8, sigma: float, hidden: tuple[int, int] = (0, 0)
) -> float | None:
    """The share of its own fine detail that `over` lacks to be as sharp as `own`; None where nothing can be compared.

    Looked at is what both show of the same skin: above the lips, and the ring beside them; what lies lower moves with
    speech. hidden: rows of the mask that lie above the frame, and below it.

    Detail D is mean |v − G v|; a share a of v − G v more makes it D + a · D', with D' = mean |(v − G v) twice|.
    """
    whole, above = len(weights) + sum(hidden), hidden[0]
    upper, cheeks = (max(math.ceil(share * whole) - above, 0) for share in (UPPER, CHEEKS))
    if cheeks == 0:
        return None
    own, over, weights = own[:cheeks], over[:cheeks], weights[:cheeks]
    ring = cv2.inRange(weights, *RING)
    if upper:
        ring[:upper] = cv2.inRange(weights[:upper], RING[0], 255)
    if cv2.countNonZero(ring) < LEAST_RING:
        return None
    fine_own, fine = (_fine(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), sigma) for image in (own, over))
    wanted, has, gains = (_level(image, ring) for image in (fine_own, fine, _fine(fine, sigma)))
    return float(np.clip((wanted - has) / (gains + DETAIL_FLOOR), *SHARPEN))


def _fine(grey: Float32, sigma: float) -> Float32:
    return cast(Float32, grey - cv2.GaussianBlur(grey, (0, 0), sigma))


def _level(fine: Float32, ring: UInt8) -> float:
    return float(cv2.mean(np.minimum(np.abs(fine), DETAIL_CAP), ring)[0])


def _share(time_s: float, fps: float) -> float:
    """How much a frame that is looked at counts in a running mean of that time constant."""
    return 1 - math.exp(-SEE_EVERY / (time_s * fps))
