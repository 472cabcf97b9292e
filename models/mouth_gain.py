"""Opens a generated mouth wider or less wide: a gain on what speech changes in the face's latents.

A gain on the speech features does not work: the network saturates, and 1.3 times the features open the mouth 1.03 times
as wide. In the network's output, the face's latents minus those of the same frame with the mouth at rest are nearly
linear in the opening. The latents at rest are predicted once per avatar frame and cached.
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np
from cachetools import LRUCache

from models.errors import ConfigError
from models.types import Float16, Float32, UInt8

CACHE_SIZE = 4096  # latents at rest, 16 KB each
# Lips that are nearly closed close completely, so a gain below 1 shrinks the opening more than in proportion: on the
# embedded pair, gains of 0.7 and 0.85 on the latents left 0.47 and 0.76 of the opening's variation, while 1.15 and 1.3
# made 1.20 and 1.31. A gain below 1 is therefore weakened.
SHRINK = 0.6  # share of the reduction that is applied to the latents


class MouthGain:
    """Wraps a lip-sync engine and applies a gain to the mouth's opening. Not thread-safe.

    engine: has `predict` and `decode`, as `models.musetalk.MuseTalk` has. gain: of the opening; 1 changes nothing.
    Raises ConfigError for an engine without these two methods.
    """

    def __init__(self, engine: Any, gain: float, cache_size: int = CACHE_SIZE) -> None:
        if not (hasattr(engine, "predict") and hasattr(engine, "decode")):
            raise ConfigError(
                f"The engine {type(engine).__name__} cannot change the mouth's amplitude.",
                "Set mouth_amplitude to 1, or use the engine openvino or torch.",
            )
        self._engine = engine
        self._gain = gain if gain > 1 else 1 - SHRINK * (1 - gain)  # on the latents
        self._at_rest: LRUCache[bytes, Float32] = LRUCache(cache_size)  # hash of the input latents → (4, 32, 32)

    def generate(self, latents: Float16, windows: Float16, rest: Float16) -> UInt8:
        """Generate faces `(n, 256, 256, 3)` with the gain.

        latents: the UNet's input, `(n, 8, 32, 32)`. windows: `(n, 50, 384)`. rest: the window of silence, `(50, 384)`.
        """
        # 1. predict the frames, and those of them at rest that are not cached, in one call
        keys = [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in latents]
        new = [k for k, key in enumerate(keys) if key not in self._at_rest and key not in keys[:k]]
        both = np.concatenate([latents, latents[new]]), np.concatenate([windows, np.repeat(rest[None], len(new), 0)])
        faces = _numpy(self._engine.predict(*both))  # (n + new, 4, 32, 32)
        # 2. the latents at rest; copied, because a view would keep the whole batch in memory
        known = {keys[k]: face.copy() for k, face in zip(new, faces[len(latents) :], strict=True)}
        known |= {key: self._at_rest[key] for key in keys if key not in known}
        self._at_rest.update(known)
        # 3. apply the gain to the difference
        at_rest = np.stack([known[key] for key in keys])
        moved = at_rest + self._gain * (faces[: len(latents)] - at_rest)
        return cast(UInt8, self._engine.decode(moved))


def _numpy(latents: Any) -> Float32:
    """A torch tensor or an array as float32 on the CPU."""
    return np.asarray(latents.float().cpu().numpy() if hasattr(latents, "cpu") else latents, np.float32)
