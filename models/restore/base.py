"""The protocols of face restorers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import cv2
import numpy as np

from models.types import Float32, UInt8


class FaceRestorer(Protocol):
    """A restoration engine. Its class method `load(**options)` takes the options of the stage's config.

    An engine whose class sets `needs_landmarks = True` works on faces on the FFHQ template, and implements
    LandmarkRestorer. Other engines never get landmarks or surroundings.
    """

    def restore(self, faces: UInt8, strength: float = 1.0) -> UInt8:
        """RGB uint8 `(n, 256, 256, 3)` → `(n, 512, 512, 3)`. strength: 0 is bicubic upsampling, 1 the full model.

        Linear between the two.
        """
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


def start_each(engine: Any, faces: Sequence[UInt8], strengths: list[float], **extra: Any) -> Callable[[], list[UInt8]]:
    """Begin to restore faces `(s, s, 3)`, each with its own strength; the function returned waits for `(512, 512, 3)`.

    An engine with a method `start` takes a strength per face, and computes while its caller goes on. The others take
    one strength per call: faces that differ are restored in full and mixed with the enlarged ones. extra: `landmarks`
    and `around` of a LandmarkRestorer. Raises InputError.
    """
    if hasattr(engine, "start"):
        wait = engine.start(faces, strengths, **extra)
        return lambda: list(wait())
    restored = _restored(engine, np.stack(faces), strengths, **extra)
    return lambda: restored


def _restored(engine: Any, faces: UInt8, strengths: list[float], **extra: Any) -> list[UInt8]:
    if len(set(strengths)) == 1:
        return list(engine.restore(faces, strengths[0], **extra))
    plain, restored = engine.restore(faces, 0.0, **extra), {}
    some = [k for k, strength in enumerate(strengths) if strength > 0]
    full = engine.restore(faces[some], 1.0, **{name: value[some] for name, value in extra.items()})
    for k, face in zip(some, full, strict=True):
        restored[k] = cv2.addWeighted(face, strengths[k], plain[k], 1 - strengths[k], 0)
    return [cast(UInt8, restored.get(k, plain[k])) for k in range(len(faces))]
