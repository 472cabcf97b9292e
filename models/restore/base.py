"""The protocols of face restorers."""

from __future__ import annotations

from typing import Any, Protocol

from models.types import Float32, UInt8


class FaceRestorer(Protocol):
    """A restoration engine. Its class method `load(**options)` takes the options of the stage's config.

    An engine whose class sets `needs_landmarks = True` works on faces on the FFHQ template, and implements
    LandmarkRestorer. Other engines never get landmarks or surroundings.
    """

    def restore(self, faces: UInt8, strength: float = 1.0) -> UInt8:
        """RGB uint8 `(n, 256, 256, 3)` → `(n, 512, 512, 3)`. strength: 0 is bicubic upsampling, 1 the full model."""
        ...


class LandmarkRestorer(Protocol):
    """A FaceRestorer that lays faces onto the FFHQ template."""

    needs_landmarks: bool

    def restore(
        self, faces: UInt8, strength: float = 1.0, landmarks: Float32 | None = None, around: UInt8 | None = None
    ) -> UInt8:
        """RGB uint8 `(n, s, s, 3)`, s = 256 or 512 → `(n, 512, 512, 3)`, at the same place.

        landmarks: `(n, 5, 2)` in px of `faces`: eye centres, nose tip, mouth corners, image left first. None: the faces
        fill the template already. around: `(n, 512, 512, 3)` on the template, what surrounds the face (hair,
        background); None where it is not known.
        """
        ...


def needs_landmarks(engine: Any) -> bool:
    """Return whether the engine takes landmarks; an engine without the attribute does not."""
    return bool(getattr(engine, "needs_landmarks", False))
