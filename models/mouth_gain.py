"""Opens a generated mouth wider, or less wide: a gain on what speech changes of the face's latents. Knows no pictures.

A gain on features will not do: the network saturates, and 1.3 times the features open the mouth 1.03 times as wide. Its
output goes on: the face's latents, less those of the same frame with the mouth at rest, are nearly linear in the
opening. A face at rest is predicted once a frame of the avatar and kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, cast

import numpy as np

from models.errors import ConfigError
from models.types import Float16, Float32, UInt8

KEPT = 4096  # faces at rest, 16 KB each
# Lips that hardly part close altogether, so a smaller gain takes more than its share: on the embedded pair 0.7 and 0.85
# left 0.47 and 0.76 of the opening's variation, while 1.15 and 1.3 made 1.20 and 1.31.
SHRINK = 0.6  # of what is to go, what is taken


class MouthGain:
    """A lip-sync engine with a gain. Raises ConfigError for an engine that does not tell UNet from decoder."""

    def __init__(self, engine: Any, gain: float, kept: int = KEPT) -> None:
        """engine: has `predict` and `decode`, as `models.musetalk.MuseTalk`. gain: of the opening, 1 as it is."""
        if not (hasattr(engine, "predict") and hasattr(engine, "decode")):
            raise ConfigError(
                f"The engine {type(engine).__name__} cannot change the mouth's amplitude.",
                "Set mouth_amplitude to 1, or use the engine openvino or torch.",
            )
        self._engine, self._kept = engine, kept
        self._gain = gain if gain > 1 else 1 - SHRINK * (1 - gain)  # of the latents
        self._rests: OrderedDict[bytes, Float32] = OrderedDict()  # (4, 32, 32) each

    def generate(self, latents: Float16, windows: Float16, rest: Float16) -> UInt8:
        """Input latents `(n, 8, 32, 32)`, windows `(n, 50, 384)` and that of rest `(50, 384)` → `(n, 256, 256, 3)`."""
        keys = [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in latents]
        new = [k for k, key in enumerate(keys) if key not in self._rests and key not in keys[:k]]
        both = np.concatenate([latents, latents[new]]), np.concatenate([windows, np.repeat(rest[None], len(new), 0)])
        faces = _numpy(self._engine.predict(*both))  # (n + new, 4, 32, 32)
        # copies: a view would keep the whole call's faces
        known = {keys[k]: face.copy() for k, face in zip(new, faces[len(latents) :], strict=True)}
        for key in keys:
            self._rests[key] = known[key] if key in known else self._rests[key]
            self._rests.move_to_end(key)
        at_rest = np.stack([self._rests[key] for key in keys])
        while len(self._rests) > self._kept:
            self._rests.popitem(last=False)
        moved = at_rest + self._gain * (faces[: len(latents)] - at_rest)
        return cast(UInt8, self._engine.decode(moved))


def _numpy(latents: Any) -> Float32:
    """A torch tensor or an array as float32 on the CPU."""
    return np.asarray(latents.float().cpu().numpy() if hasattr(latents, "cpu") else latents, np.float32)
