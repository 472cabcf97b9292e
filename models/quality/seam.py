"""Measures whether a paste is visible: the colour step across the mask's edge, and the sharpness inside and outside."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.quality.flicker import FLOOR
from models.types import Float32, UInt8

SEAM_PX = 3.0  # distance from the mask's edge at which both sides are compared
DETAIL_SIGMA_PX = 1.5  # a Gaussian blur of this deviation removes what counts as detail


def edge_of(weights: UInt8) -> tuple[Float32, Float32]:
    """Return the contour of paste weights uint8 `(h, w)` at 1/2: points `(m, 2)` as x, y, and inward unit normals."""
    contours, _ = cv2.findContours((weights >= 128).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    edge = np.concatenate(contours)[:, 0].astype(np.float32)
    smooth = cv2.GaussianBlur(weights.astype(np.float32), (0, 0), 3)
    pixels = edge[:, 1].astype(int), edge[:, 0].astype(int)
    normal = np.stack([cv2.Sobel(smooth, cv2.CV_32F, 1, 0)[pixels], cv2.Sobel(smooth, cv2.CV_32F, 0, 1)[pixels]], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6
    return edge, normal


def steps_along(image: UInt8, edge: Float32, normal: Float32) -> Float32:
    """Return ΔE (CIE 1976) between both sides of each point of a contour, `(m,)`, in an RGB picture `(h, w, 3)`."""
    inside, outside = (_lab_at(image, edge + side * SEAM_PX * normal) for side in (1, -1))
    return cast(Float32, np.linalg.norm(inside - outside, axis=-1))


def seam_delta_e(source: UInt8, composed: UInt8, weights: UInt8) -> float:
    """Return the mean ΔE across the mask's edge in the composed picture, minus that in the source picture.

    Pictures: RGB uint8 `(h, w, 3)`; weights: uint8 `(h, w)`. 0 for an empty mask.
    """
    edge, normal = edge_of(weights)
    if not len(edge):
        return 0.0
    return float((steps_along(composed, edge, normal) - steps_along(source, edge, normal)).mean())


def detail(image: UInt8, region: npt.NDArray[np.bool_]) -> float:
    """Return the mean absolute detail in `region` (h, w) of an RGB picture uint8 `(h, w, 3)`, in grey levels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), DETAIL_SIGMA_PX))
    return float(fine[region].mean()) if region.any() else 0.0


def sharpness_ratio(image: UInt8, inner: npt.NDArray[np.bool_], outer: npt.NDArray[np.bool_]) -> float:
    """Return the detail in `inner` over the detail in `outer`; to be compared with the source's own ratio."""
    return (detail(image, inner) + FLOOR) / (detail(image, outer) + FLOOR)


def _lab_at(image: UInt8, points: Float32) -> npt.NDArray[Any]:
    """The colour in CIE Lab at points `(m, 2)`, `(m, 3)`."""
    at = points.astype(np.float32)
    colours = cv2.remap(image.astype(np.float32) / 255, at[:, :1], at[:, 1:], cv2.INTER_LINEAR)  # (m, 1, 3)
    return cast(npt.NDArray[Any], cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[:, 0])
