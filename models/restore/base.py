"""The protocol of a face restorer. Knows nothing of avatars, sessions, HTTP or Ray."""

from __future__ import annotations

from typing import Any, Protocol

from models.types import Float32, UInt8


class FaceRestorer(Protocol):
    """Made by its class method `load(**options)`, with the options of the stage's config.

    An engine whose class says `needs_landmarks = True` works on faces laid onto the FFHQ template: it takes 256 px and
    512 px faces, their landmarks, and what is around them (LandmarkRestorer). Others are never given these.
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
        """RGB uint8 `(n, s, s, 3)`, s = 256 or 512 → `(n, 512, 512, 3)`, where they lay.

        landmarks: `(n, 5, 2)` in px of `faces`: eye centres, nose tip, mouth corners, image left first. None: the faces
        lie on the template already. around: `(n, 512, 512, 3)` on the template, what is seen beyond the face's picture
        (hair, background); None where nothing is known.
        """
        ...


def needs_landmarks(engine: Any) -> bool:
    """Whether the engine asks for landmarks; engines written before the question do not."""
    return bool(getattr(engine, "needs_landmarks", False))
