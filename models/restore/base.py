"""The protocol of a face restorer. Knows nothing of avatars, sessions, HTTP or Ray."""

from __future__ import annotations

from typing import Protocol

from models.types import UInt8


class FaceRestorer(Protocol):
    """Made by its class method `load(**options)`, with the options of the stage's config."""

    def restore(self, faces: UInt8, strength: float = 1.0) -> UInt8:
        """RGB uint8 `(n, 256, 256, 3)` → `(n, 512, 512, 3)`. strength: 0 is bicubic upsampling, 1 the full model."""
        ...
