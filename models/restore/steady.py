"""Carries detail from restored faces to those between, where the picture rests. Knows no network."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from models.deflicker import coarse, rest
from models.types import Float32, UInt8


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
