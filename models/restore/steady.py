"""Keeps restored faces from flickering, and carries detail from restored faces to those between. Knows no network.

A restorer sees one frame at a time, so in a still face its detail dances with the noise. Where the picture rests, each
restored face is averaged with those before; where it changes, it is taken as it is. Change is measured on the faces
before restoration, blurred, so that noise does not count as change.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from models.types import RESTORED_PX, Float32, UInt8

SHARE_AT_REST = 0.3  # of the newest face where nothing changes: uncorrelated flicker falls to √(0.3 / 1.7) = 0.42
CHANGE_LEVELS = 3.0  # grey levels of change, of 255, by which the newest face has 1 − (1 − 0.3) / e ≈ three quarters
COARSE_PX = 128  # change is measured on faces of this side …
BLUR_PX = 5  # … blurred over so many of its pixels: 20 px of the face


def coarse(face: UInt8) -> Float32:
    """What change is measured on: `(512, 512, 3)` or `(256, 256, 3)` → float32 `(128, 128, 3)`, without noise."""
    small = cv2.resize(face, (COARSE_PX, COARSE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    return cast(Float32, cv2.blur(small, (BLUR_PX, BLUR_PX)))


def rest(a: Float32, b: Float32) -> Float32:
    """How much two `coarse` faces show the same: 1 at rest, 0 where they differ, `(512, 512)`."""
    change = np.abs(a - b).max(2) / CHANGE_LEVELS
    same = np.exp(-change * change)
    return cast(Float32, cv2.resize(same, (RESTORED_PX, RESTORED_PX), interpolation=cv2.INTER_LINEAR))


class Steadier:
    """One face's memory. `reset` at a cut."""

    def __init__(self) -> None:
        self._face: Float32 | None = None  # (512, 512, 3)
        self._coarse: Float32 | None = None

    def reset(self) -> None:
        """Forget the face."""
        self._face = self._coarse = None

    def __call__(self, base: UInt8, restored: UInt8) -> UInt8:
        """The face to show. base: before restoration; restored: after, `(512, 512, 3)`."""
        seen = coarse(base)
        if self._face is None or self._coarse is None:
            self._face, self._coarse = restored.astype(np.float32), seen
            return restored
        share = 1 - (1 - SHARE_AT_REST) * rest(seen, self._coarse)  # (512, 512)
        self._face = cast(Float32, cv2.blendLinear(restored.astype(np.float32), self._face, share, 1 - share))
        small = cv2.resize(share, (COARSE_PX, COARSE_PX), interpolation=cv2.INTER_AREA)
        self._coarse = cast(Float32, cv2.blendLinear(seen, self._coarse, small, 1 - small))
        return cast(UInt8, cv2.convertScaleAbs(self._face))  # rounded


class Detail:
    """What a restorer added to one face, to be carried to faces near in time."""

    def __init__(self, base: UInt8, restored: UInt8) -> None:
        """base and restored: `(512, 512, 3)`."""
        self._added = cv2.subtract(restored, base, dtype=cv2.CV_16S)
        self._coarse = coarse(base)

    def on(self, base: UInt8) -> Float32:
        """The detail for another face `(512, 512, 3)`: all of it where that face shows the same, none where not."""
        return cast(Float32, self._added * rest(coarse(base), self._coarse)[..., None])


def between(base: UInt8, before: Detail, after: Detail | None, share: float) -> UInt8:
    """An unrestored face `(512, 512, 3)` with the detail of restored ones before and after it; `share` is the latter's.

    Where the face has changed since (a mouth that moves) it keeps its own pixels.
    """
    added = before.on(base) if after is None else (1 - share) * before.on(base) + share * after.on(base)
    return np.clip(np.rint(base + added), 0, 255).astype(np.uint8)
