"""Keeps the heads around an avatar's faces on the restorer's device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from models.restore.avatar_faces import AvatarFaces
from models.runtime.transfers import Transfers
from models.types import RESTORED_PX

Key = tuple[tuple[str, str], int]  # avatar id and version, frame

CACHE_BYTES = 512 << 20  # 680 heads on the template, 27 s of avatars
MIN_HEADS = 128  # at least those of the two largest batches that may be in flight


class Heads:
    """The most recently used heads of all avatars, `(512, 512, 3)` uint8 on one device. Not thread-safe."""

    def __init__(self, device: Any, cache_bytes: int = CACHE_BYTES) -> None:
        count = max(MIN_HEADS, cache_bytes // (RESTORED_PX * RESTORED_PX * 3))
        self._rows = torch.empty((count, RESTORED_PX, RESTORED_PX, 3), dtype=torch.uint8, device=device)
        self._places: OrderedDict[Key, int] = OrderedDict()  # the least recently used first
        self._transfers = Transfers(device)

    def rows(self, wanted: Sequence[tuple[AvatarFaces, int]]) -> torch.Tensor:
        """Return the heads of avatar frames, `(n, 512, 512, 3)` on the device; n is at most MIN_HEADS."""
        found = {(avatar.key, frame): (avatar, frame) for avatar, frame in wanted}
        missing = {key: avatar.head(frame) for key, (avatar, frame) in found.items() if key not in self._places}
        for key in found.keys() - missing.keys():
            self._places.move_to_end(key)  # so that the missing ones do not take their places
        for key in missing:
            full = len(self._places) == len(self._rows)
            self._places[key] = self._places.popitem(last=False)[1] if full else len(self._places)
        with torch.inference_mode():
            if missing:
                self._rows.index_copy_(0, self._index(missing), self._transfers.up(list(missing.values())))
            return self._rows[self._index((avatar.key, frame) for avatar, frame in wanted)]

    def _index(self, keys: Iterable[Key]) -> torch.Tensor:
        return self._transfers.up(np.array([self._places[key] for key in keys]))
