"""Keeps the heads around an avatar's faces on the restorer's device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from models.restore.avatar_faces import AvatarFaces
from models.runtime.transfers import Transfers
from models.types import RESTORED_PX, UInt8

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

    def missing(self, avatar: AvatarFaces, frames: Iterable[int]) -> list[int]:
        """Return those of the frames whose heads are not here. May be called on any thread."""
        return [frame for frame in dict.fromkeys(frames) if (avatar.key, frame) not in self._places]

    def rows(self, wanted: Sequence[tuple[AvatarFaces, int, UInt8 | None]]) -> torch.Tensor:
        """Return the heads of avatar frames, `(n, 512, 512, 3)` on the device; n is at most MIN_HEADS.

        The third of each is the head, if it is drawn already; it is used where it is missing.
        """
        found = {(avatar.key, frame): (avatar, frame, head) for avatar, frame, head in wanted}
        missing = {
            key: avatar.head(frame) if head is None else head
            for key, (avatar, frame, head) in found.items()
            if key not in self._places
        }
        with torch.inference_mode():
            drawn = self._transfers.up(list(missing.values())) if missing else None  # may run out of memory
            for key in found.keys() - missing.keys():
                self._places.move_to_end(key)  # so that the missing ones do not take their places
            for key in missing:
                full = len(self._places) == len(self._rows)
                self._places[key] = self._places.popitem(last=False)[1] if full else len(self._places)
            if drawn is not None:
                try:
                    self._rows.index_copy_(0, self._index(missing), drawn)
                except Exception:
                    self._places.clear()  # else a place could hold the head of another frame
                    raise
            return self._rows[self._index((avatar.key, frame) for avatar, frame, _ in wanted)]

    def _index(self, keys: Iterable[Key]) -> torch.Tensor:
        return self._transfers.up(np.array([self._places[key] for key in keys]))
