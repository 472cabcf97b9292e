"""Stores parsed regions in little memory: one bit per pixel, deflated; about 2 KB per frame."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from models.avatar.parse import PARSE_PX
from models.types import UInt8

LEVEL = 6  # of deflate


class PackedRegions:
    """A RegionSource.

    data: uint8 `(bytes,)`, the deflated bits of all regions. starts: int64 `(n + 1,)`, the start of each, and the end.
    """

    def __init__(self, data: UInt8, starts: npt.NDArray[np.int64]) -> None:
        assert starts[0] == 0 and starts[-1] == len(data), (starts[0], starts[-1], len(data))
        self._data, self._starts = data, starts

    @classmethod
    def pack(cls, regions: Iterable[UInt8]) -> PackedRegions:
        """Pack regions uint8 0/255 `(512, 512)`, at least one."""
        packer = RegionPacker()
        for region in regions:
            packer.add(region)
        return packer.packed()

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arguments of the constructor."""
        return {"data": self._data, "starts": self._starts}

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> UInt8:
        """Return region `index`, uint8 0/255 `(512, 512)`."""
        bits = zlib.decompress(self._data[self._starts[index] : self._starts[index + 1]].tobytes())
        return np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(PARSE_PX, PARSE_PX) * np.uint8(255)


class RegionPacker:
    """Packs regions one by one, so that only packed ones are in memory."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []

    def add(self, region: UInt8) -> None:
        """Add a region, uint8 0/255 `(512, 512)`."""
        assert region.shape == (PARSE_PX, PARSE_PX) and region.dtype == np.uint8, (region.shape, region.dtype)
        self._packed.append(zlib.compress(np.packbits(region > 127).tobytes(), LEVEL))

    def packed(self) -> PackedRegions:
        """Return all added regions; at least one."""
        data = np.frombuffer(b"".join(self._packed), np.uint8)
        return PackedRegions(data, np.cumsum([0, *map(len, self._packed)], dtype=np.int64))
